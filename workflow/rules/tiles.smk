# Large fields: cut into tiles, which are fields of their own, and put together again at the end.

# A rule per large field, since the names of its files are those of its tiles.
for parent in TILED:

    rule:
        name:
            f"tile_{parent}"
        input:
            code=code_of("tile_field", "io/fields", "io/readers"),
            checked=f"{OUT}/checked.json",
            files=files_for(GIVEN_ROWS, [parent]),
        output:
            tiles=expand(f"{OUT}/tiles/{{tile}}.fits", tile=TILED[parent]),
            sources=f"{OUT}/tiles/{parent}.fits",
        log:
            f"{OUT}/logs/tile_field/{parent}.log",
        benchmark:
            f"{OUT}/benchmarks/tile_field/{parent}.tsv"
        conda:
            "../../envs/blendem.yaml"
        params:
            row=next(row.plain() for row in GIVEN_ROWS if row.field == parent),
            tiles=CONFIG.tiles.model_dump(include={"size"}),
            blends=CONFIG.blends.model_dump(include={"buckets"}),
            detect=CONFIG.detect.model_dump(),
            meta={"METHOD": "catalog" if SIMULATED else "detection", "PRIOR": "none"}
            | META,
        script:
            "../scripts/tile_field.py"

    if SIMULATED:

        rule:
            name:
                f"tile_truth_{parent}"
            input:
                code=code_of("tile_truth", "io/truth", "io/h5", "io/gather"),
                truth=f"{OUT}/truth/{parent}.h5",
                sources=f"{OUT}/tiles/{parent}.fits",
                tiles=expand(f"{OUT}/tiles/{{tile}}.fits", tile=TILED[parent]),
            output:
                truths=expand(f"{OUT}/truth/{{tile}}.h5", tile=TILED[parent]),
            log:
                f"{OUT}/logs/tile_truth/{parent}.log",
            benchmark:
                f"{OUT}/benchmarks/tile_truth/{parent}.tsv"
            conda:
                "../../envs/blendem.yaml"
            script:
                "../scripts/tile_truth.py"

    rule:
        name:
            f"gather_{parent}"
        input:
            code=code_of("gather_field", "io/products", "io/gather", "io/regions"),
            files=files_for(GIVEN_ROWS, [parent]),
            sources=f"{OUT}/tiles/{parent}.fits",
            tiles=expand(f"{OUT}/tiles/{{tile}}.fits", tile=TILED[parent]),
            catalogs=expand(f"{OUT}/catalog/{{tile}}.fits", tile=TILED[parent]),
            models=expand(f"{OUT}/models/{{tile}}.fits", tile=TILED[parent]),
        output:
            catalog=f"{OUT}/catalog/{parent}.fits",
            regions=f"{OUT}/catalog/{parent}.reg",
            mosaic=f"{OUT}/mosaic/{parent}.fits",
        log:
            f"{OUT}/logs/gather/{parent}.log",
        benchmark:
            f"{OUT}/benchmarks/gather/{parent}.tsv"
        conda:
            "../../envs/blendem.yaml"
        params:
            row=next(row.plain() for row in GIVEN_ROWS if row.field == parent),
        script:
            "../scripts/gather_field.py"

    rule:
        name:
            f"gather_map_{parent}"
        input:
            code=code_of("gather_map", "io/gather", "io/products"),
            sources=f"{OUT}/tiles/{parent}.fits",
            tiles=expand(f"{OUT}/tiles/{{tile}}.fits", tile=TILED[parent]),
            catalogs=expand(f"{OUT}/map/{{tile}}.fits", tile=TILED[parent]),
        output:
            catalog=f"{OUT}/map/{parent}.fits",
        log:
            f"{OUT}/logs/gather_map/{parent}.log",
        benchmark:
            f"{OUT}/benchmarks/gather_map/{parent}.tsv"
        conda:
            "../../envs/blendem.yaml"
        script:
            "../scripts/gather_map.py"


if TILED:

    rule plot_mosaic:
        input:
            code=code_of("plot_mosaic"),
            mosaic=f"{OUT}/mosaic/{list(TILED)[0]}.fits",
            catalog=f"{OUT}/catalog/{list(TILED)[0]}.fits",
        output:
            f"{OUT}/figures/mosaic.png",
        log:
            f"{OUT}/logs/plot_mosaic.log",
        benchmark:
            f"{OUT}/benchmarks/plot_mosaic.tsv"
        conda:
            "../../envs/blendem.yaml"
        params:
            band=BAND,
            plot=PLOT,
        script:
            "../scripts/plot_mosaic.py"
