"""A comparison's experiments against a number of theirs."""


rule curves:
    input:
        scores=curves_scores,
        code=code("scanbench.curves"),
    output:
        figure=report(
            "results/curves/{name}/curves.svg",
            caption="../report/curves.rst",
            category="{name}",
            labels={"result": "curves"},
        ),
        points=report(
            "results/curves/{name}/points.csv",
            caption="../report/curves.rst",
            category="{name}",
            labels={"result": "points"},
        ),
        reached=report(
            "results/curves/{name}/reached.csv",
            caption="../report/curves.rst",
            category="{name}",
            labels={"result": "where the baseline is reached"},
        ),
        provenance="results/curves/{name}/curves.json",
        record="results/records/curves/{name}.json",
    log:
        "results/logs/curves/{name}.log",
    benchmark:
        "results/benchmarks/curves/{name}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        spec=lambda wildcards: plan.curves_spec(config, wildcards.name),
    shell:
        recorded(
            "curves --spec {params.spec:q} {input.scores:q} $(dirname {output.figure:q})"
        )
