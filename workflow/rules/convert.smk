"""Scans become one store per data set."""


rule convert:
    input:
        scans="results/data/{dataset}/scans",
        code=code("scanbench.convert"),
    output:
        "results/data/{dataset}/store.h5",
    log:
        "results/logs/convert/{dataset}.log",
    benchmark:
        "results/benchmarks/convert/{dataset}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        spec=lambda wildcards: plan.convert_spec(config, wildcards.dataset),
    shell:
        "scanbench convert --spec {params.spec:q} {input.scans:q} {output:q} 2>&1 | tee -i {log:q}"
