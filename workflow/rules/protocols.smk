"""The same models under several protocols, side by side."""


rule protocols:
    input:
        scores=lambda wildcards: [
            f"results/comparisons/{name}/scores"
            for name in config["side_by_side"][wildcards.name]["comparisons"]
        ],
        code=code("scanbench.protocols"),
    output:
        figure=report(
            "results/side-by-side/{name}/protocols.svg",
            caption="../report/protocols.rst",
            category="{name}",
            labels={"result": "protocols side by side"},
        ),
        table=report(
            "results/side-by-side/{name}/protocols.csv",
            caption="../report/protocols.rst",
            category="{name}",
            labels={"result": "table"},
        ),
        record="results/records/protocols/{name}.json",
    log:
        "results/logs/protocols/{name}.log",
    benchmark:
        "results/benchmarks/protocols/{name}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        spec=lambda wildcards: plan.protocols_spec(config, wildcards.name),
    shell:
        recorded("protocols --spec {params.spec:q} $(dirname {output.figure:q})")
