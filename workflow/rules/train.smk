"""One run: one experiment on one fold with one seed, on training and validation scans only."""


rule train:
    input:
        store=split_store,
        split="results/data/{dataset}/splits/{split}.json",
        foundations=foundations,
        code=code("scanbench.training"),
        model_code=model_code("scanbench.training"),
        chosen=chosen,
    output:
        weights=of_run("weights.safetensors"),
        model=of_run("model.json"),
        history=of_run("history.csv"),
        seen=of_run("seen.txt"),
        provenance=of_run("train.json"),
        record=of_run("train.json", below="results/records"),
    log:
        of_run("train.log", below="results/logs"),
    benchmark:
        of_run("train.tsv", below="results/benchmarks")
    wildcard_constraints:
        experiment=none_of(config["ensembles"]),
    conda:
        "../../envs/scanbench.yaml"
    threads: lambda wildcards: plan.threads(config, wildcards)
    resources:
        gpu=lambda wildcards: plan.gpus(config, wildcards),
    params:
        spec=lambda wildcards: plan.train_spec(config, wildcards),
        chosen=chosen_option,
        foundations=foundation_options,
        options=training_options,
        temporary=[],
    shell:
        recorded(
            "train {params.chosen:q} {params.foundations:q} {params.options} --spec {params.spec:q}"
            " {input.store:q} {input.split:q} {output.weights:q}",
            options="{params.temporary:q}",
        )
