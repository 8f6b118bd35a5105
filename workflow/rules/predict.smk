"""Every held-out prediction of a run, once."""


rule predict:
    input:
        store=split_store,
        split="results/data/{dataset}/splits/{split}.json",
        weights=of_run("weights.safetensors"),
        model=of_run("model.json"),
        code=code("scanbench.prediction"),
        model_code=model_code("scanbench.prediction"),
    output:
        predictions=of_run("predictions.parquet"),
        provenance=of_run("predict.json"),
        record=of_run("predict.json", below="results/records"),
    log:
        of_run("predict.log", below="results/logs"),
    benchmark:
        of_run("predict.tsv", below="results/benchmarks")
    wildcard_constraints:
        experiment=none_of(config["ensembles"]),
    conda:
        "../../envs/scanbench.yaml"
    resources:
        gpu=lambda wildcards: plan.gpus(config, wildcards),
    shell:
        recorded(
            "predict {input.store:q} {input.split:q} {input.weights:q} {output.predictions:q}"
        )
