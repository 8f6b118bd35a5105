"""An experiment's runs as ONNX, in several forms, fed the scans that they never saw."""


rule export:
    input:
        weights=of_run("weights.safetensors"),
        model=of_run("model.json"),
        code=code("scanbench.export"),
        model_code=model_code("scanbench.export"),
    output:
        step=of_run("onnx/{form}.onnx"),
        card=of_run("onnx/{form}.md"),
        record=of_run("export-{form}.json", below="results/records"),
    log:
        of_run("export-{form}.log", below="results/logs"),
    benchmark:
        of_run("export-{form}.tsv", below="results/benchmarks")
    wildcard_constraints:
        form="[a-z0-9]+",
    conda:
        "../../envs/scanbench.yaml"
    shell:
        recorded(
            "export --form {wildcards.form:q} $(dirname {input.model:q}) {output.step:q}"
        )


rule predict_exported:
    input:
        store=split_store,
        split="results/data/{dataset}/splits/{split}.json",
        weights=of_run("weights.safetensors"),
        model=of_run("model.json"),
        step=of_run("onnx/{form}.onnx"),
        code=code("scanbench.exported"),
        model_code=model_code("scanbench.exported"),
    output:
        predictions=of_run("onnx/{form}.parquet"),
        provenance=of_run("onnx/{form}.json"),
        record=of_run("predict-{form}.json", below="results/records"),
    log:
        of_run("predict-{form}.log", below="results/logs"),
    benchmark:
        of_run("predict-{form}.tsv", below="results/benchmarks")
    wildcard_constraints:
        form="[a-z0-9]+",
    conda:
        "../../envs/scanbench.yaml"
    shell:
        recorded(
            "predict --exported {input.step:q} {input.store:q} {input.split:q}"
            " {input.weights:q} {output.predictions:q}"
        )


rule deployment:
    input:
        files=deployment_files,
        store=store_of(deployment_comparison),
        split=split_of(deployment_comparison),
        code=code("scanbench.deployment"),
    output:
        deployment=directory("results/deployments/{name}"),
        record="results/records/deployment/{name}.json",
    log:
        "results/logs/deployment/{name}.log",
    benchmark:
        "results/benchmarks/deployment/{name}.tsv"
    conda:
        "../../envs/scanbench.yaml"
    params:
        spec=lambda wildcards: plan.deployment_spec(config, wildcards.name),
    shell:
        recorded(
            "deployment --spec {params.spec:q} {input.store:q} {input.split:q}"
            " {output.deployment:q}"
        )
