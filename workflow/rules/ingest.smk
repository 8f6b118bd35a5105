"""Raw files, simulated, downloaded or the user's own, become scans in physical units."""


rule simulate:
    input:
        code=code(f"scanbench.{config['study']}.simulate"),
    output:
        source=directory("results/data/{dataset}/source"),
        record="results/records/simulate/{dataset}.json",
    log:
        "results/logs/simulate/{dataset}.log",
    benchmark:
        "results/benchmarks/simulate/{dataset}.tsv"
    wildcard_constraints:
        dataset=datasets_from("simulate"),
    conda:
        "../../envs/scanbench.yaml"
    threads: lambda wildcards: config["datasets"][wildcards.dataset]["simulate"]["workers"]
    params:
        study=config["study"],
        spec=lambda wildcards: plan.simulate_spec(config, wildcards.dataset),
    shell:
        recorded(
            "simulate --study {params.study} --spec {params.spec:q} --workers {threads}"
            " {output.source:q}"
        )


rule fetch:
    input:
        local=local_clone,
        code=code(f"scanbench.{config['study']}.fetch"),
    output:
        source=directory("results/data/{dataset}/source"),
        record="results/records/fetch/{dataset}.json",
    log:
        "results/logs/fetch/{dataset}.log",
    benchmark:
        "results/benchmarks/fetch/{dataset}.tsv"
    wildcard_constraints:
        dataset=datasets_from("spm-toolbox"),
    conda:
        "../../envs/scanbench.yaml"
    params:
        study=config["study"],
        local=clone_option,
        files=user_files,
    shell:
        recorded("fetch --study {params.study} {params.local:q} {output.source:q}")


rule ingest:
    input:
        source=source_folder,
        labels=label_table,
        code=code(f"scanbench.{config['study']}.ingest"),
        readers=reader_code(),
    output:
        scans=directory("results/data/{dataset}/scans"),
        record="results/records/ingest/{dataset}.json",
    log:
        "results/logs/ingest/{dataset}.log",
    benchmark:
        "results/benchmarks/ingest/{dataset}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    threads: lambda wildcards: config["datasets"][wildcards.dataset]["ingest"]["workers"]
    params:
        study=config["study"],
        spec=lambda wildcards: plan.ingest_spec(config, wildcards.dataset),
        source=lambda wildcards: plan.source_path(config, wildcards.dataset),
        labels=label_option,
        files=user_files,
    shell:
        recorded(
            "ingest --study {params.study} --dataset {wildcards.dataset:q} --quiet --spec"
            " {params.spec:q} --workers {threads} {params.labels:q} {params.source:q}"
            " {output.scans:q}"
        )
