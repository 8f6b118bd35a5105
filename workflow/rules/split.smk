"""Scans are divided into parts by group, and the division is audited for leakage."""


rule copies:
    input:
        store="results/data/{dataset}/store.h5",
        code=code("scanbench.copies"),
    output:
        store="results/data/{dataset}/copies/{split}.h5",
        record="results/records/copies/{dataset}/{split}.json",
    log:
        "results/logs/copies/{dataset}/{split}.log",
    benchmark:
        "results/benchmarks/copies/{dataset}/{split}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        spec=lambda wildcards: plan.copies_spec(config, wildcards.split),
    shell:
        recorded("copies --spec {params.spec:q} {input.store:q} {output.store:q}")


rule split:
    input:
        store=split_store,
        code=code("scanbench.splits"),
    output:
        split="results/data/{dataset}/splits/{split}.json",
        record="results/records/split/{dataset}/{split}.json",
    log:
        "results/logs/split/{dataset}/{split}.log",
    benchmark:
        "results/benchmarks/split/{dataset}/{split}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        spec=lambda wildcards: plan.split_spec(config, wildcards.split),
    shell:
        recorded(
            "split --dataset {wildcards.dataset:q} --split {wildcards.split:q} --spec"
            " {params.spec:q} {input.store:q} {output.split:q}"
        )
