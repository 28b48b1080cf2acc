# Galaxies behind dust: two priors, joint draws, catalogs, scores, figure. With a section `dust`.

if CONFIG.dust:

    DUST = CONFIG.dust.model_dump()
    # What the priors do not depend on.
    NOT_FITTED = {"redshift", "steps", "corrections", "aligned", "slope_sd"}
    DUST_FIT = CONFIG.dust.model_dump(exclude=NOT_FITTED)
    DUST_CATALOGS, DUST_MODELS = (
        expand(f"{OUT}/dust/{kind}/{{field}}.fits", field=FIELDS)
        for kind in ("catalog", "models")
    )
    DUST_SAMPLES = expand(f"{OUT}/dust/samples/{{field}}.h5", field=FIELDS)
    DUST_TRUTHS = expand(f"{OUT}/truth/{{field}}.h5", field=FIELDS) if SIMULATED else []
    DUST_PRODUCTS = [
        *DUST_CATALOGS,
        f"{OUT}/dust/summary.json",
        f"{OUT}/dust/figures/dust.png",
    ]
    DUST_METHOD = (
        f"galaxy behind dust, two priors, {CONFIG.dust.steps} levels,"
        f" {CONFIG.dust.corrections} Metropolis steps"
    )

    rule simulate_dust:
        input:
            code=code_of("simulate_dust", "io/dust"),
            checked=f"{OUT}/checked.json",
        output:
            stamps=f"{OUT}/dust/stamps/{{chunk}}.h5",
        log:
            f"{OUT}/logs/simulate_dust/{{chunk}}.log",
        benchmark:
            f"{OUT}/benchmarks/simulate_dust/{{chunk}}.tsv"
        conda:
            "../../envs/blendem.yaml"
        params:
            seed=CONFIG.seed,
            instrument=INSTRUMENT,
            stamps=CONFIG.stamps.model_dump(),
            frame=CONFIG.frame.model_dump(),
        script:
            "../scripts/simulate_dust.py"

    rule fit_dust:
        input:
            code=code_of("fit_dust", "io/dust"),
            stamps=expand(
                f"{OUT}/dust/stamps/{{chunk}}.h5", chunk=range(CONFIG.stamps.chunks)
            ),
        output:
            galaxy=DUST_GALAXY,
            dust=DUST_MAPS,
            span=f"{OUT}/dust/span.h5",
        log:
            f"{OUT}/logs/fit_dust.log",
        benchmark:
            f"{OUT}/benchmarks/fit_dust.tsv"
        conda:
            "../../envs/blendem.yaml"
        threads: CORES
        params:
            seed=CONFIG.seed,
            dust=DUST_FIT,
            frame=CONFIG.frame.model_dump(),
            instrument=INSTRUMENT,
            reference_band=BAND,
        script:
            "../scripts/fit_dust.py"

    rule sample_dust:
        input:
            code=code_of("sample_dust", "io/dust"),
            fields=lambda wildcards: files_of(wildcards.chunk),
            blends=f"{OUT}/blends/{{chunk}}.h5",
            galaxy=DUST_GALAXY,
            dust=DUST_MAPS,
            span=f"{OUT}/dust/span.h5",
        output:
            posterior=f"{OUT}/dust/posterior/{{chunk}}.h5",
        log:
            f"{OUT}/logs/sample_dust/{{chunk}}.log",
        benchmark:
            f"{OUT}/benchmarks/sample_dust/{{chunk}}.tsv"
        conda:
            "../../envs/blendem.yaml"
        threads: CHUNK_THREADS
        params:
            rows=lambda wildcards: rows_of(wildcards.chunk),
            dust=DUST,
            draws=CONFIG.infer.samples,
            seed=CONFIG.seed,
        script:
            "../scripts/sample_dust.py"

    # A rule per chunk, since the names of its outputs are those of the chunk's fields.
    for number in range(CHUNKS):

        rule:
            name:
                f"measure_dust_{number}"
            input:
                code=code_of("measure_dust", "io/dust"),
                fields=files_of(number),
                blends=f"{OUT}/blends/{number}.h5",
                posterior=f"{OUT}/dust/posterior/{number}.h5",
                galaxy=DUST_GALAXY,
                dust=DUST_MAPS,
            output:
                catalogs=expand(
                    f"{OUT}/dust/catalog/{{field}}.fits", field=fields_of(number)
                ),
                models=expand(
                    f"{OUT}/dust/models/{{field}}.fits", field=fields_of(number)
                ),
                samples=expand(
                    f"{OUT}/dust/samples/{{field}}.h5", field=fields_of(number)
                ),
            log:
                f"{OUT}/logs/measure_dust/{number}.log",
            benchmark:
                f"{OUT}/benchmarks/measure_dust/{number}.tsv"
            conda:
                "../../envs/blendem.yaml"
            threads: CHUNK_THREADS
            params:
                rows=rows_of(number),
                dust=DUST,
                reference_band=BAND,
                batch=CONFIG.blends.batch,
                meta={"METHOD": DUST_METHOD} | META,
            script:
                "../scripts/measure_dust.py"

    rule score_dust:
        input:
            code=code_of("score_dust", "provenance"),
            catalogs=DUST_CATALOGS,
            samples=DUST_SAMPLES,
            truths=DUST_TRUTHS,
            posteriors=all_chunks("dust/posterior/{chunk}.h5"),
        output:
            sources=f"{OUT}/dust/sources.csv",
            summary=f"{OUT}/dust/summary.json",
            provenance=f"{OUT}/dust/provenance.json",
        log:
            f"{OUT}/logs/score_dust.log",
        benchmark:
            f"{OUT}/benchmarks/score_dust.tsv"
        conda:
            "../../envs/blendem.yaml"
        params:
            config=CONFIG.model_dump(),
            command=f"snakemake --cores 2 --configfile {CONFIGFILE}",
        script:
            "../scripts/score_dust.py"

    rule plot_dust:
        input:
            code=code_of("plot_dust"),
            catalogs=DUST_CATALOGS,
            models=DUST_MODELS,
            truths=DUST_TRUTHS,
            sources=f"{OUT}/dust/sources.csv",
            galaxy=DUST_GALAXY,
        output:
            f"{OUT}/dust/figures/dust.png",
        log:
            f"{OUT}/logs/plot_dust.log",
        benchmark:
            f"{OUT}/benchmarks/plot_dust.tsv"
        conda:
            "../../envs/blendem.yaml"
        params:
            band=BAND,
            n_samples=CONFIG.infer.samples,
            plot=PLOT,
        script:
            "../scripts/plot_dust.py"
