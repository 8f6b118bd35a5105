"""Every held-out prediction of a run, once."""


rule predict:
    input:
        store="results/data/{dataset}/store.h5",
        split="results/data/{dataset}/splits/{split}.json",
        weights="results/" + plan.RUN + "/weights.safetensors",
        model="results/" + plan.RUN + "/model.json",
        code=code("scanbench.prediction"),
        model_code=model_code,
    output:
        predictions="results/" + plan.RUN + "/predictions.parquet",
        provenance="results/" + plan.RUN + "/predict.json",
    log:
        "results/logs/" + plan.RUN + "/predict.log",
    benchmark:
        "results/benchmarks/" + plan.RUN + "/predict.tsv"
    conda:
        "../../envs/scanbench.yaml"
    resources:
        gpu=lambda wildcards: plan.gpus(config, wildcards),
    shell:
        "scanbench predict {input.store:q} {input.split:q} {input.weights:q} {output.predictions:q}"
        " 2>&1 | tee {log:q}"
