"""Which lines moved the answers of runs, and what such attributions are worth."""


rule attribute:
    input:
        store=data_of(explained, "store.h5"),
        split=split_of(explained),
        weights=run_of(explained, "weights.safetensors"),
        model=run_of(explained, "model.json"),
        code=code(f"scanbench.{config['study']}.explanation"),
        model_code=model_code(f"scanbench.{config['study']}.explanation"),
    output:
        attributions=directory(
            "results/explanations/{explanation}/attributions/{experiment}/fold{fold}-seed{seed}"
        ),
        record="results/records/attribute/{explanation}/{experiment}/fold{fold}-seed{seed}.json",
    log:
        "results/logs/attribute/{explanation}/{experiment}/fold{fold}-seed{seed}.log",
    benchmark:
        "results/benchmarks/attribute/{explanation}/{experiment}/fold{fold}-seed{seed}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    resources:
        gpu=lambda wildcards: plan.gpus(config, wildcards),
    params:
        study=config["study"],
        spec=lambda wildcards: plan.attribute_spec(config, wildcards.explanation),
    shell:
        recorded(
            "attribute --study {params.study} --spec {params.spec:q} {input.store:q}"
            " {input.split:q} {input.weights:q} {output.attributions:q}"
        )


rule explain:
    input:
        attributions=attributions,
        scans=data_of(explained, "scans"),
        store=data_of(explained, "store.h5"),
        code=code(f"scanbench.{config['study']}.explanation"),
    output:
        checks=report(
            "results/explanations/{explanation}/checks.svg",
            caption="../report/explanation.rst",
            category="{explanation}",
            labels={"result": "what attributions are worth"},
        ),
        curves=report(
            "results/explanations/{explanation}/curves.svg",
            caption="../report/explanation.rst",
            category="{explanation}",
            labels={"result": "deletion and insertion"},
        ),
        scans=report(
            directory("results/explanations/{explanation}/scans"),
            patterns=["{name}.svg"],
            caption="../report/attributions.rst",
            category="{explanation}",
            labels={"result": "attributions of {name}"},
        ),
        localisation=report(
            "results/explanations/{explanation}/localisation.csv",
            caption="../report/explanation.rst",
            category="{explanation}",
            labels={"result": "hits of known tip changes"},
        ),
        faithfulness=report(
            "results/explanations/{explanation}/faithfulness.csv",
            caption="../report/explanation.rst",
            category="{explanation}",
            labels={"result": "areas of deletion and insertion"},
        ),
        means="results/explanations/{explanation}/curves.csv",
        provenance="results/explanations/{explanation}/explain.json",
        record="results/records/explain/{explanation}.json",
    log:
        "results/logs/explain/{explanation}.log",
    benchmark:
        "results/benchmarks/explain/{explanation}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        study=config["study"],
        spec=lambda wildcards: plan.explain_spec(config, wildcards.explanation),
    shell:
        recorded(
            "explain --study {params.study} --spec {params.spec:q}"
            " $(dirname {output.provenance:q})/attributions {input.scans:q} {input.store:q}"
            " $(dirname {output.provenance:q})"
        )
