# EM, unrolled over laps, so that the graph stays acyclic and more laps plan only the new ones.

EM = CONFIG.em.model_dump(
    exclude={
        "laps",
        "max_chi2",
        "pixels_out",
        "start",
        "start_iterations",
        "watch_every",
    }
)
# What EM learns from and is watched with does not depend on how it learns.
HELD_OUT = CONFIG.em.model_dump(include={"held_out", "pixels_out"})


if CONFIG.prior.tier == "gaussian":

    # E and M step are closed form.
    rule em_lap:
        input:
            code=code_of("em_lap"),
            blends=all_chunks("blends/{chunk}.h5"),
            statistics=all_chunks("statistics/{chunk}.h5"),
            prior=lambda wildcards: prior_of(int(wildcards.lap) - 1),
        output:
            # Lap 00 belongs to train_prior.
            prior=f"{OUT}/prior/{{lap,(?!00)\\d\\d}}.eqx",
            evidence=f"{OUT}/evidence/{{lap}}.csv",
        log:
            f"{OUT}/logs/em_lap/{{lap}}.log",
        benchmark:
            f"{OUT}/benchmarks/em_lap/{{lap}}.tsv"
        conda:
            "../../envs/blendem.yaml"
        params:
            lap=lambda wildcards: int(wildcards.lap),
            em=CONFIG.em.model_dump(
                include={"iterations", "symmetric", "min_eigenvalue"}
            ),
        script:
            "../scripts/em_lap.py"

else:

    # Draws of the galaxies of a chunk; blends that watch EM are left out.
    rule em_expectation:
        input:
            code=code_of("em_expectation"),
            blends=f"{OUT}/blends/{{chunk}}.h5",
            statistics=f"{OUT}/statistics/{{chunk}}.h5",
            prior=lambda wildcards: prior_of(int(wildcards.lap) - 1),
        output:
            draws=temp(f"{OUT}/em/draws/{{lap}}/{{chunk}}.h5"),
        log:
            f"{OUT}/logs/em_expectation/{{lap}}_{{chunk}}.log",
        benchmark:
            f"{OUT}/benchmarks/em_expectation/{{lap}}_{{chunk}}.tsv"
        conda:
            "../../envs/blendem.yaml"
        threads: CHUNK_THREADS
        params:
            lap=lambda wildcards: int(wildcards.lap),
            em=EM,
            amplitude_jitter=CONFIG.prior.amplitude_jitter,
            seed=CONFIG.seed,
        script:
            "../scripts/em_expectation.py"

    rule em_maximization:
        input:
            code=code_of("em_maximization"),
            draws=lambda wildcards: all_chunks(f"em/draws/{wildcards.lap}/{{chunk}}.h5"),
            prior=lambda wildcards: prior_of(int(wildcards.lap) - 1),
            first=prior_of(0),
        output:
            # Lap 00 belongs to train_prior.
            prior=f"{OUT}/prior/{{lap,(?!00)\\d\\d}}.eqx",
        log:
            f"{OUT}/logs/em_maximization/{{lap}}.log",
        benchmark:
            f"{OUT}/benchmarks/em_maximization/{{lap}}.tsv"
        conda:
            "../../envs/blendem.yaml"
        params:
            lap=lambda wildcards: int(wildcards.lap),
            em=EM,
            seed=CONFIG.seed,
        script:
            "../scripts/em_maximization.py"

    # Statistics of the blends that watch EM, with a part of their pixels held out.
    rule em_split:
        input:
            code=code_of("em_split"),
            blends=f"{OUT}/blends/{{chunk}}.h5",
            statistics=f"{OUT}/statistics/{{chunk}}.h5",
            basis=BASIS,
        output:
            split=f"{OUT}/em/split/{{chunk}}.h5",
        log:
            f"{OUT}/logs/em_split/{{chunk}}.log",
        benchmark:
            f"{OUT}/benchmarks/em_split/{{chunk}}.tsv"
        conda:
            "../../envs/blendem.yaml"
        threads: CHUNK_THREADS
        params:
            infer=CONFIG.infer.model_dump(exclude=DRAWING),
            blends=CONFIG.blends.model_dump(),
            held_out=HELD_OUT,
            seed=CONFIG.seed,
        script:
            "../scripts/em_split.py"

    # `sources`: galaxies whose truth is known.
    rule em_watch:
        input:
            code=code_of("em_watch"),
            blends=all_chunks("blends/{chunk}.h5"),
            statistics=all_chunks("statistics/{chunk}.h5"),
            split=all_chunks("em/split/{chunk}.h5"),
            truths=(
                expand(f"{OUT}/truth/{{field}}.h5", field=FIELDS) if SIMULATED else []
            ),
            prior=lambda wildcards: prior_of(wildcards.lap),
        output:
            **({"sources": f"{OUT}/em/watch/{{lap}}_sources.csv"} if SIMULATED else {}),
            lap=f"{OUT}/em/watch/{{lap}}.csv",
            blends=f"{OUT}/em/watch/{{lap}}_blends.csv",
        log:
            f"{OUT}/logs/em_watch/{{lap}}.log",
        benchmark:
            f"{OUT}/benchmarks/em_watch/{{lap}}.tsv"
        # Nothing waits for it but the table.
        priority: -1
        conda:
            "../../envs/blendem.yaml"
        params:
            lap=lambda wildcards: int(wildcards.lap),
            steps=CONFIG.em.steps,
            reference_band=CONFIG.infer.reference_band,
            amplitude_jitter=CONFIG.prior.amplitude_jitter,
            amplitude_tolerance=CONFIG.infer.amplitude_tolerance,
            seed=CONFIG.seed,
        script:
            "../scripts/em_watch.py"

    EM_LAPS = [
        f"{lap:02d}"
        for lap in sorted({*range(0, LAPS + 1, CONFIG.em.watch_every), LAPS})
    ]

    rule em_table:
        input:
            code=code_of("em_table"),
            laps=expand(f"{OUT}/em/watch/{{lap}}.csv", lap=EM_LAPS),
            blends=expand(f"{OUT}/em/watch/{{lap}}_blends.csv", lap=EM_LAPS),
        output:
            table=f"{OUT}/em/laps.csv",
            figure=f"{OUT}/figures/em.png",
        log:
            f"{OUT}/logs/em_table.log",
        benchmark:
            f"{OUT}/benchmarks/em_table.tsv"
        conda:
            "../../envs/blendem.yaml"
        params:
            plot=CONFIG.plot.model_dump(),
        script:
            "../scripts/em_table.py"

    # Lap 0, then twice as far each time, and the last one.
    SHOWN_LAPS = sorted({0, LAPS} | {2**k for k in range(7) if 2**k < LAPS})

    rule plot_em_priors:
        input:
            code=code_of("plot_em_priors"),
            priors=[prior_of(lap) for lap in SHOWN_LAPS],
        output:
            f"{OUT}/figures/em_priors.png",
        log:
            f"{OUT}/logs/plot_em_priors.log",
        benchmark:
            f"{OUT}/benchmarks/plot_em_priors.tsv"
        conda:
            "../../envs/blendem.yaml"
        params:
            seed=CONFIG.seed,
            plot=CONFIG.plot.model_dump(),
        script:
            "../scripts/plot_em_priors.py"
