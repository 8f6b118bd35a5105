"""Raw files, simulated, downloaded or the user's own, become scans in physical units."""


rule simulate:
    output:
        directory("results/data/{dataset}/source"),
    input:
        code=code("scanbench.tipstate.simulate"),
    params:
        spec=lambda wildcards: plan.simulate_spec(config, wildcards.dataset),
    wildcard_constraints:
        dataset=datasets_from("simulate"),
    log:
        "results/logs/simulate/{dataset}.log",
    benchmark:
        "results/benchmarks/simulate/{dataset}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    shell:
        "scanbench simulate --spec {params.spec:q} {output:q} 2>&1 | tee {log:q}"


rule fetch:
    output:
        directory("results/data/{dataset}/source"),
    input:
        code=code("scanbench.tipstate.fetch"),
    wildcard_constraints:
        dataset=datasets_from("spm-toolbox"),
    log:
        "results/logs/fetch/{dataset}.log",
    benchmark:
        "results/benchmarks/fetch/{dataset}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    shell:
        "scanbench fetch {output:q} 2>&1 | tee {log:q}"


rule ingest:
    output:
        directory("results/data/{dataset}/scans"),
    input:
        source=source_folder,
        labels=label_table,
        code=code("scanbench.tipstate.ingest"),
    params:
        spec=lambda wildcards: plan.ingest_spec(config, wildcards.dataset),
    log:
        "results/logs/ingest/{dataset}.log",
    benchmark:
        "results/benchmarks/ingest/{dataset}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    shell:
        "scanbench ingest --spec {params.spec:q} {output:q} 2>&1 | tee {log:q}"
