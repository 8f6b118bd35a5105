"""Simulated scans beside real ones: drawn, and measured without labels."""


rule realism:
    input:
        real=lambda wildcards: realism_store(wildcards, "real"),
        simulated=lambda wildcards: realism_store(wildcards, "simulated"),
        code=code(f"scanbench.{config['study']}.realism"),
    output:
        realism=report(
            directory("results/realism/{name}"),
            patterns=["{figure}.svg"],
            caption="../report/realism.rst",
            category="{name}",
            labels={"result": "{figure}"},
        ),
        record="results/records/realism/{name}.json",
    log:
        "results/logs/realism/{name}.log",
    benchmark:
        "results/benchmarks/realism/{name}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        study=config["study"],
        spec=lambda wildcards: plan.realism_spec(config, wildcards.name),
    shell:
        recorded(
            "realism --study {params.study} --spec {params.spec:q} {input.real:q}"
            " {input.simulated:q} {output.realism:q}"
        )
