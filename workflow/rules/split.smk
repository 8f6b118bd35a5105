"""Scans are divided into parts by group, and the division is audited for leakage."""


rule copies:
    input:
        store="results/data/{dataset}/store.h5",
        code=code("scanbench.copies"),
    output:
        "results/data/{dataset}/copies/{split}.h5",
    log:
        "results/logs/copies/{dataset}/{split}.log",
    benchmark:
        "results/benchmarks/copies/{dataset}/{split}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        spec=lambda wildcards: plan.copies_spec(config, wildcards.split),
    shell:
        "scanbench copies --spec {params.spec:q} {input.store:q} {output:q} 2>&1 | tee -i {log:q}"


rule split:
    input:
        store=split_store,
        code=code("scanbench.splits"),
    output:
        "results/data/{dataset}/splits/{split}.json",
    log:
        "results/logs/split/{dataset}/{split}.log",
    benchmark:
        "results/benchmarks/split/{dataset}/{split}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        spec=lambda wildcards: plan.split_spec(config, wildcards.split),
    shell:
        "scanbench split --dataset {wildcards.dataset:q} --split {wildcards.split:q}"
        " --spec {params.spec:q} {input.store:q} {output:q} 2>&1 | tee -i {log:q}"
