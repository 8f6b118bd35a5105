"""Scans are divided into parts by group, and the division is audited for leakage."""


rule split:
    output:
        "results/data/{dataset}/splits/{split}.json",
    input:
        store="results/data/{dataset}/store.h5",
        code=code("scanbench.splits"),
    params:
        spec=lambda wildcards: plan.split_spec(config, wildcards.split),
    log:
        "results/logs/split/{dataset}/{split}.log",
    benchmark:
        "results/benchmarks/split/{dataset}/{split}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    shell:
        "scanbench split --spec {params.spec:q} {input.store:q} {output:q} 2>&1 | tee {log:q}"
