# Figures and the report.


rule make_report:
    input:
        summary=f"{OUT}/summary.json",
    output:
        report=f"{OUT}/report.html",
    log:
        f"{OUT}/logs/make_report.log",
    benchmark:
        f"{OUT}/benchmarks/make_report.tsv"
    conda:
        "../../envs/blendem.yaml"
    shell:
        "cp {input.summary} {output.report} > {log} 2>&1"
