"""Simulated scans beside real ones: drawn, and measured without labels."""


rule realism:
    input:
        real=lambda wildcards: realism_store(wildcards, "real"),
        simulated=lambda wildcards: realism_store(wildcards, "simulated"),
        code=code(f"scanbench.{config['study']}.realism"),
    output:
        report(
            directory("results/realism/{name}"),
            patterns=["{figure}.svg"],
            caption="../report/realism.rst",
            category="{name}",
            labels={"result": "{figure}"},
        ),
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
        "scanbench realism --study {params.study} --spec {params.spec:q}"
        " {input.real:q} {input.simulated:q} {output:q} 2>&1 | tee -i {log:q}"
