"""The predictions of an ensemble: those of its members, averaged fold by fold and seed by seed."""


rule combine:
    input:
        tables=members("predictions.parquet"),
        code=code("scanbench.ensembles"),
    output:
        predictions=of_run("predictions.parquet"),
        provenance=of_run("predict.json"),
        record=of_run("combine.json", below="results/records"),
    log:
        of_run("combine.log", below="results/logs"),
    benchmark:
        of_run("combine.tsv", below="results/benchmarks")
    wildcard_constraints:
        experiment=one_of(config["ensembles"]),
    conda:
        "../../envs/scanbench.yaml"
    params:
        spec=lambda wildcards: plan.combine_spec(config, wildcards),
    shell:
        recorded(
            "combine --spec {params.spec:q} {output.predictions:q} {input.tables:q}"
        )


use rule combine as combine_unlabelled with:
    input:
        tables=members("unlabelled.parquet"),
        code=code("scanbench.ensembles"),
    output:
        predictions=of_run("unlabelled.parquet"),
        provenance=of_run("unlabelled.json"),
        record=of_run("combine_unlabelled.json", below="results/records"),
    log:
        of_run("combine_unlabelled.log", below="results/logs"),
    benchmark:
        of_run("combine_unlabelled.tsv", below="results/benchmarks")
