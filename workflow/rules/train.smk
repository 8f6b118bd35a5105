"""One run: one experiment on one fold with one seed, on training and validation scans only."""


rule train:
    input:
        store="results/data/{dataset}/store.h5",
        split="results/data/{dataset}/splits/{split}.json",
        code=code("scanbench.training"),
        model_code=model_code,
    output:
        weights="results/" + plan.RUN + "/weights.safetensors",
        model="results/" + plan.RUN + "/model.json",
        history="results/" + plan.RUN + "/history.csv",
        provenance="results/" + plan.RUN + "/train.json",
    log:
        "results/logs/" + plan.RUN + "/train.log",
    benchmark:
        "results/benchmarks/" + plan.RUN + "/train.tsv"
    conda:
        "../../envs/scanbench.yaml"
    threads: lambda wildcards: plan.threads(config, wildcards)
    resources:
        gpu=lambda wildcards: plan.gpus(config, wildcards),
    params:
        spec=lambda wildcards: plan.train_spec(config, wildcards),
    shell:
        "scanbench train --spec {params.spec:q} {input.store:q} {input.split:q} {output.weights:q}"
        " 2>&1 | tee {log:q}"
