# Fields with truth, training stamps, and the check of everything that is read.


rule check_inputs:
    input:
        code=code_of(
            "check_inputs",
            "io/fields",
            "io/bands",
            "io/checks",
            "io/readers",
            "io/catalogs",
            "io/table",
            "io/psfex",
            "survey/psf_model",
        ),
        table=CONFIG.fields or [],
        files=(
            []
            if SIMULATED
            else sorted(set(files_for(GIVEN_ROWS, [row.field for row in GIVEN_ROWS])))
        ),
    output:
        checked=f"{OUT}/checked.json",
    log:
        f"{OUT}/logs/check_inputs.log",
    benchmark:
        f"{OUT}/benchmarks/check_inputs.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        fields=CONFIG.fields,
        bands={
            "names": MODEL_BANDS,
            "source": BANDS_FROM,
            "asked": list(CONFIG.frame.bands or ()),
            "reference": CONFIG.infer.reference_band,
        },
        redshift=CONFIG.dust and CONFIG.dust.redshift,
    script:
        "../scripts/check_inputs.py"


rule simulate_stamps:
    input:
        code=code_of("simulate_stamps", without=["prior/"]),
        checked=f"{OUT}/checked.json",
    output:
        stamps=f"{OUT}/stamps/{{chunk}}.npy",
    log:
        f"{OUT}/logs/simulate_stamps/{{chunk}}.log",
    benchmark:
        f"{OUT}/benchmarks/simulate_stamps/{{chunk}}.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        seed=CONFIG.seed,
        instrument=INSTRUMENT,
        stamps=CONFIG.stamps.model_dump(),
        frame=CONFIG.frame.model_dump(),
    script:
        "../scripts/simulate_stamps.py"


rule simulate_field:
    input:
        code=code_of(
            "simulate_field",
            *(["survey/dusty", "prior/dust"] if CONFIG.dust else []),
            without=["prior/", "survey/dusty"],
        ),
    output:
        field=f"{OUT}/fields/{{field}}.fits",
        truth=f"{OUT}/truth/{{field}}.h5",
        others=[f"{OUT}/fields/{{field}}.{x}.fits" for x in CONFIG.simulate.others],
    log:
        f"{OUT}/logs/simulate_field/{{field}}.log",
    benchmark:
        f"{OUT}/benchmarks/simulate_field/{{field}}.tsv"
    conda:
        "../../envs/blendem.yaml"
    params:
        seed=CONFIG.seed,
        index=lambda wildcards: WHOLE_FIELDS.index(wildcards.field),
        simulate=CONFIG.simulate.model_dump(),
        frame=CONFIG.frame.model_dump(),
        dust=CONFIG.dust and CONFIG.dust.model_dump(),
    script:
        "../scripts/simulate_field.py"
