"""Scans become one store per data set."""


rule convert:
    output:
        "results/data/{dataset}/store.h5",
    input:
        scans="results/data/{dataset}/scans",
        code=code("scanbench.store"),
    params:
        spec=lambda wildcards: plan.convert_spec(config, wildcards.dataset),
    log:
        "results/logs/convert/{dataset}.log",
    benchmark:
        "results/benchmarks/convert/{dataset}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    shell:
        "scanbench convert --spec {params.spec:q} {input.scans:q} {output:q} 2>&1 | tee {log:q}"
