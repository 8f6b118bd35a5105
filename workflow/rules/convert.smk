"""Scans become one store per data set."""


rule convert:
    input:
        scans="results/data/{dataset}/scans",
        code=code("scanbench.convert"),
    output:
        store="results/data/{dataset}/store.h5",
        record="results/records/convert/{dataset}.json",
    log:
        "results/logs/convert/{dataset}.log",
    benchmark:
        "results/benchmarks/convert/{dataset}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        spec=lambda wildcards: plan.convert_spec(config, wildcards.dataset),
    shell:
        recorded("convert --spec {params.spec:q} {input.scans:q} {output.store:q}")
