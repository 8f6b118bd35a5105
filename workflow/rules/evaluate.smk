"""A comparison: all its models scored by the same code on the same rows."""


rule evaluate:
    input:
        predictions=predictions,
        store=store_of(compared),
        split=split_of(compared),
        code=code("scanbench.evaluation"),
    output:
        scores=directory("results/comparisons/{comparison}/scores"),
        record="results/records/evaluate/{comparison}.json",
    log:
        "results/logs/evaluate/{comparison}.log",
    benchmark:
        "results/benchmarks/evaluate/{comparison}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        spec=lambda wildcards: plan.evaluate_spec(config, wildcards.comparison),
    shell:
        recorded(
            "evaluate --spec {params.spec:q} {input.store:q} {input.split:q}"
            " {output.scores:q}"
        )
