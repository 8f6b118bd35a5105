"""Models against people on the same footing, and the ceiling that noise in labels sets."""


rule predict_unlabelled:
    input:
        store="results/data/{dataset}/store.h5",
        split="results/data/{dataset}/splits/{split}.json",
        weights=of_run("weights.safetensors"),
        model=of_run("model.json"),
        code=code("scanbench.prediction"),
        model_code=model_code("scanbench.prediction"),
    output:
        predictions=of_run("unlabelled.parquet"),
        provenance=of_run("unlabelled.json"),
        record=of_run("predict_unlabelled.json", below="results/records"),
    log:
        of_run("predict_unlabelled.log", below="results/logs"),
    benchmark:
        of_run("predict_unlabelled.tsv", below="results/benchmarks")
    wildcard_constraints:
        experiment=none_of(config["ensembles"]),
    conda:
        "../../envs/scanbench.yaml"
    resources:
        gpu=lambda wildcards: plan.gpus(config, wildcards),
    shell:
        recorded(
            "predict --unlabelled {input.store:q} {input.split:q} {input.weights:q}"
            " {output.predictions:q}"
        )


rule agreement:
    input:
        predictions=predictions,
        unlabelled=unlabelled,
        scans=data_of(compared, "scans"),
        store=store_of(compared),
        split=split_of(compared),
        code=code(f"scanbench.{config['study']}.agreement"),
    output:
        agreement=directory("results/comparisons/{comparison}/agreement"),
        record="results/records/agreement/{comparison}.json",
    log:
        "results/logs/agreement/{comparison}.log",
    benchmark:
        "results/benchmarks/agreement/{comparison}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        study=config["study"],
        spec=lambda wildcards: plan.agreement_spec(config, wildcards.comparison),
    shell:
        recorded(
            "agreement --study {params.study} --spec {params.spec:q} {input.store:q}"
            " {input.split:q} {input.scans:q} {output.agreement:q}"
        )
