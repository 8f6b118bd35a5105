"""Whether scans of a kind never trained on are flagged."""


rule anomaly_scores:
    input:
        store="results/data/{dataset}/store.h5",
        split="results/data/{dataset}/splits/{split}.json",
        weights=of_run("weights.safetensors"),
        model=of_run("model.json"),
        code=code(f"scanbench.{config['study']}.anomaly"),
        model_code=model_code(f"scanbench.{config['study']}.anomaly"),
    output:
        scores=of_run("anomaly.parquet"),
        provenance=of_run("anomaly.json"),
        record=of_run("anomaly_scores.json", below="results/records"),
    log:
        of_run("anomaly_scores.log", below="results/logs"),
    benchmark:
        of_run("anomaly_scores.tsv", below="results/benchmarks")
    conda:
        "../../envs/scanbench.yaml"
    resources:
        gpu=lambda wildcards: plan.gpus(config, wildcards),
    params:
        study=config["study"],
    shell:
        recorded(
            "anomaly-scores --study {params.study} {input.store:q} {input.split:q}"
            " {input.weights:q} {output.scores:q}"
        )


rule anomaly:
    input:
        scores=anomaly_tables,
        store=data_of(flagged, "store.h5"),
        split=split_of(flagged),
        code=code(f"scanbench.{config['study']}.anomaly"),
    output:
        figure=report(
            "results/anomalies/{anomaly}/anomaly.svg",
            caption="../report/anomaly.rst",
            category="{anomaly}",
            labels={"result": "scans of withheld kinds flagged"},
        ),
        table=report(
            "results/anomalies/{anomaly}/anomaly.csv",
            caption="../report/anomaly.rst",
            category="{anomaly}",
            labels={"result": "table"},
        ),
        roc="results/anomalies/{anomaly}/roc.csv",
        provenance="results/anomalies/{anomaly}/anomaly.json",
        record="results/records/anomaly/{anomaly}.json",
    log:
        "results/logs/anomaly/{anomaly}.log",
    benchmark:
        "results/benchmarks/anomaly/{anomaly}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        study=config["study"],
        spec=lambda wildcards: plan.anomaly_spec(config, wildcards.anomaly),
    shell:
        recorded(
            "anomaly --study {params.study} --spec {params.spec:q} {input.store:q}"
            " {input.split:q} $(dirname {output.table:q})"
        )
