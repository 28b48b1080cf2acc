# From fields to blends, statistics, posteriors and catalogs: many blends per job.


BLENDS = CONFIG.blends.model_dump()
if CONFIG.prior.tier == "unet":
    # Its pixels are those of its own stamps.
    BLENDS["magnify"] = 1


rule extract_blends:
    input:
        code=code_of("extract_blends"),
        checked=f"{OUT}/checked.json",
        fields=lambda wildcards: files_of(wildcards.chunk),
        basis=DUST_GALAXY if CONFIG.dust else BASIS,
    output:
        blends=f"{OUT}/blends/{{chunk}}.h5",
    log:
        f"{OUT}/logs/extract_blends/{{chunk}}.log",
    benchmark:
        f"{OUT}/benchmarks/extract_blends/{{chunk}}.tsv"
    conda:
        "../../envs/blendem.yaml"
    threads: CHUNK_THREADS
    params:
        rows=lambda wildcards: rows_of(wildcards.chunk),
        blends=BLENDS,
        detect=CONFIG.detect.model_dump(),
        frame=CONFIG.frame.model_dump(),
        noise=CONFIG.noise.model_dump(),
    script:
        "../scripts/extract_blends.py"


rule compute_statistics:
    input:
        code=code_of("compute_statistics"),
        blends=f"{OUT}/blends/{{chunk}}.h5",
        basis=BASIS,
    output:
        statistics=f"{OUT}/statistics/{{chunk}}.h5",
    log:
        f"{OUT}/logs/compute_statistics/{{chunk}}.log",
    benchmark:
        f"{OUT}/benchmarks/compute_statistics/{{chunk}}.tsv"
    conda:
        "../../envs/blendem.yaml"
    threads: CHUNK_THREADS
    params:
        infer=CONFIG.infer.model_dump(exclude=DRAWING),
        blends=CONFIG.blends.model_dump(),
        max_chi2=CONFIG.em.max_chi2,
    script:
        "../scripts/compute_statistics.py"


rule sample_posterior:
    input:
        code=code_of("sample_posterior"),
        blends=f"{OUT}/blends/{{chunk}}.h5",
        statistics=f"{OUT}/statistics/{{chunk}}.h5",
        prior=prior_of(LAPS),
    output:
        posterior=f"{OUT}/posterior/{{chunk}}.h5",
    log:
        f"{OUT}/logs/sample_posterior/{{chunk}}.log",
    benchmark:
        f"{OUT}/benchmarks/sample_posterior/{{chunk}}.tsv"
    conda:
        "../../envs/blendem.yaml"
    threads: CHUNK_THREADS
    params:
        seed=CONFIG.seed,
        infer=CONFIG.infer.model_dump(include=DRAWING | {"reference_band"}),
        batch=CONFIG.blends.batch,
    script:
        "../scripts/sample_posterior.py"


# Goes into the header of the catalogs.
if CONFIG.prior.tier == "gaussian":
    METHOD = f"gaussian prior, exact posterior, {LAPS} EM laps"
else:
    METHOD = (
        f"{CONFIG.prior.tier} diffusion prior, reverse diffusion,"
        f" {CONFIG.infer.steps} steps, corrector {CONFIG.infer.corrector:g}"
    )


# A rule per chunk, since the names of its outputs are those of the chunk's fields.
for number in range(CHUNKS):

    rule:
        name:
            f"measure_{number}"
        input:
            code=code_of("measure"),
            fields=files_of(number),
            blends=f"{OUT}/blends/{number}.h5",
            statistics=f"{OUT}/statistics/{number}.h5",
            posterior=f"{OUT}/posterior/{number}.h5",
            prior=prior_of(LAPS),
        output:
            catalogs=expand(f"{OUT}/catalog/{{field}}.fits", field=fields_of(number)),
            models=expand(f"{OUT}/models/{{field}}.fits", field=fields_of(number)),
            samples=expand(f"{OUT}/samples/{{field}}.h5", field=fields_of(number)),
            blends=f"{OUT}/measured/{number}.h5",
        log:
            f"{OUT}/logs/measure/{number}.log",
        benchmark:
            f"{OUT}/benchmarks/measure/{number}.tsv"
        conda:
            "../../envs/blendem.yaml"
        threads: CHUNK_THREADS
        params:
            rows=rows_of(number),
            infer=CONFIG.infer.model_dump(),
            blends=CONFIG.blends.model_dump(),
            meta={"METHOD": METHOD} | META,
        script:
            "../scripts/measure.py"

    rule:
        name:
            f"fit_map_{number}"
        input:
            code=code_of("fit_map"),
            fields=files_of(number),
            blends=f"{OUT}/blends/{number}.h5",
            statistics=f"{OUT}/statistics/{number}.h5",
            basis=BASIS,
        output:
            maps=expand(f"{OUT}/map/{{field}}.fits", field=fields_of(number)),
            timing=f"{OUT}/map/{number}.h5",
        log:
            f"{OUT}/logs/fit_map/{number}.log",
        benchmark:
            f"{OUT}/benchmarks/fit_map/{number}.tsv"
        conda:
            "../../envs/blendem.yaml"
        threads: CHUNK_THREADS
        params:
            rows=rows_of(number),
            map=CONFIG.map.model_dump(),
            frame=CONFIG.frame.model_dump(),
            centroid_prior=CONFIG.infer.centroid_prior,
            blends=CONFIG.blends.model_dump(),
            meta={"METHOD": f"MAP, {CONFIG.map.profile} profiles"} | META,
        script:
            "../scripts/fit_map.py"
