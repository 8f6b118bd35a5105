"""Where in a scan did the tip change: scores of each line, and all detectors judged."""


rule tip_change_scores:
    input:
        store=data_of(detected, "store.h5"),
        split=split_of(detected),
        weights=run_of(detected, "weights.safetensors"),
        model=run_of(detected, "model.json"),
        code=code(f"scanbench.{config['study']}.tip_change_stage"),
        model_code=model_code(f"scanbench.{config['study']}.tip_change_stage"),
    output:
        scores="results/tip-changes/{tip_change}/scores/{experiment}/fold{fold}-seed{seed}.parquet",
        provenance="results/tip-changes/{tip_change}/scores/{experiment}/fold{fold}-seed{seed}.json",
        record="results/records/tip-changes/{tip_change}/{experiment}/fold{fold}-seed{seed}.json",
    log:
        "results/logs/tip-changes/{tip_change}/{experiment}/fold{fold}-seed{seed}.log",
    benchmark:
        "results/benchmarks/tip-changes/{tip_change}/{experiment}/fold{fold}-seed{seed}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        study=config["study"],
        spec=lambda wildcards: plan.tip_change_scores_spec(config, wildcards.tip_change),
    shell:
        recorded(
            "tip-change-scores --study {params.study} --spec {params.spec:q} {input.store:q}"
            " {input.split:q} {input.weights:q} {output.scores:q}"
        )


rule tip_change:
    input:
        scores=tip_change_scores,
        scans=data_of(detected, "scans"),
        store=data_of(detected, "store.h5"),
        split=split_of(detected),
        code=code(f"scanbench.{config['study']}.tip_change_stage"),
    output:
        figure=report(
            "results/tip-changes/{tip_change}/tip-change.svg",
            caption="../report/tip_change.rst",
            category="{tip_change}",
            labels={"result": "tip changes found"},
        ),
        detection=report(
            "results/tip-changes/{tip_change}/detection.csv",
            caption="../report/tip_change.rst",
            category="{tip_change}",
            labels={"result": "alarms against known lines"},
        ),
        scans=report(
            "results/tip-changes/{tip_change}/scans.csv",
            caption="../report/tip_change.rst",
            category="{tip_change}",
            labels={"result": "largest scores against labels"},
        ),
        provenance="results/tip-changes/{tip_change}/tip_change.json",
        record="results/records/tip-changes/{tip_change}.json",
    log:
        "results/logs/tip-changes/{tip_change}.log",
    benchmark:
        "results/benchmarks/tip-changes/{tip_change}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        study=config["study"],
        spec=lambda wildcards: plan.tip_change_spec(config, wildcards.tip_change),
    shell:
        recorded(
            "tip-changes --study {params.study} --spec {params.spec:q} {input.store:q}"
            " {input.split:q} {input.scans:q} $(dirname {output.figure:q})/scores"
            " $(dirname {output.figure:q})"
        )
