"""Before training, where a search is wanted: some settings are tried, validation scans choose."""


use rule train as trial with:
    input:
        store=split_store,
        split="results/data/{dataset}/splits/{split}.json",
        foundations=lambda wildcards: foundations(of_trial(wildcards)),
        code=code("scanbench.training"),
        model_code=model_code("scanbench.training"),
    output:
        weights=temp(of_search("trial{trial}/weights.safetensors")),
        model=of_search("trial{trial}/model.json"),
        history=of_search("trial{trial}/history.csv"),
        seen=of_search("trial{trial}/seen.txt"),
        provenance=of_search("trial{trial}/train.json"),
        record=of_search("trial{trial}.json", below="results/records"),
    log:
        of_search("trial{trial}.log", below="results/logs"),
    benchmark:
        of_search("trial{trial}.tsv", below="results/benchmarks")
    params:
        spec=lambda wildcards: plan.trial_spec(config, wildcards),
        chosen=[],
        foundations=lambda wildcards: foundation_options(of_trial(wildcards)),
        options=training_options,
        temporary=["--temporary", "weights.safetensors"],


rule choose:
    input:
        trials=trials,
        code=code("scanbench.tuning"),
    output:
        chosen=of_search("chosen.json"),
        provenance=of_search("choose.json"),
        record=of_search("choose.json", below="results/records"),
    log:
        of_search("choose.log", below="results/logs"),
    benchmark:
        of_search("choose.tsv", below="results/benchmarks")
    conda:
        "../../envs/scanbench.yaml"
    params:
        spec=lambda wildcards: plan.choose_spec(config, wildcards),
        trials=trial_folders,
    shell:
        recorded("choose --spec {params.spec:q} {output.chosen:q} {params.trials:q}")
