# Settings of the run, its fields, and shared helpers.
import os
import sys
from pathlib import Path

# Rules and scripts use this checkout, installed or not.
sys.path.insert(0, str(Path(workflow.basedir) / "src"))

import blendem
from blendem.config import (
    SHIPPED,
    ConfigError,
    config_hash,
    load_config,
    with_frame,
    with_start,
)
from blendem.dependencies import modules_behind
from blendem.io.headers import read_header
from blendem.io.shipped import shipped_prior
from blendem.io.table import FieldRow, InputError, check_files, read_fields_table
from blendem.io.tiling import rows_in_tiles
from blendem.provenance import file_sha256
from blendem.survey.instruments import INSTRUMENTS


def simulated_rows(simulate, out):
    """Rows of the table of fields that the run simulates."""
    eyes, rows = [simulate.instrument, *simulate.also], []
    for number in range(simulate.n_fields):
        first = Path(f"{out}/fields/sim_{number:03d}.fits")
        for i, name in enumerate(["", *simulate.others]):
            epoch = simulate.epochs[i] if simulate.epochs else None
            rows.append(
                FieldRow(
                    field=first.stem,
                    instrument=eyes[i] if epoch is None else eyes[0],
                    path=first.with_suffix(f".{name}.fits") if name else first,
                    epoch="" if epoch is None else str(i),
                    mjd=None if epoch is None else epoch.mjd,
                )
            )
    return rows


def in_tiles(rows, config, out):
    """Rows as jobs work on them, of large fields the tiles, and the names of these by field."""
    if config.tiles.size is None or config.blends.group != "footprint" or config.dust:
        return rows, {}
    return rows_in_tiles(
        rows,
        config.tiles.size,
        config.tiles.margin(config.blends),
        Path(f"{out}/tiles"),
        config.simulate.shape if config.fields is None else None,
    )


# A default that the user's file does not mention must not leak in from the default file.
try:
    CONFIG = load_config(dict(config))
    # Training stamps have the bands and pixels of these instruments, for real fields too.
    INSTRUMENT = CONFIG.simulate.instrument
    EYES = [INSTRUMENT, *CONFIG.simulate.also]
    if CONFIG.simulate.also:
        every = dict.fromkeys(band for x in EYES for band in INSTRUMENTS[x].bands)
        sharpest = min(INSTRUMENTS[x].pixel_scale for x in EYES)
        CONFIG = with_frame(CONFIG, tuple(every), sharpest)
    BANDS = list(CONFIG.frame.bands or INSTRUMENTS[INSTRUMENT].bands)
    if CONFIG.prior.start == SHIPPED:
        path = shipped_prior(Path(workflow.basedir) / "priors", BANDS)
        CONFIG = with_start(CONFIG, os.path.relpath(path))
    OUT = f"results/{CONFIG.run}"
    if CONFIG.fields is None:
        ROWS = simulated_rows(CONFIG.simulate, OUT)
    else:
        ROWS = read_fields_table(CONFIG.fields)
        # Snakemake would name a missing file, but neither its field nor a remedy.
        check_files(ROWS)
    # Rows as they are given, and as jobs work on them: of large fields the tiles.
    GIVEN_ROWS, (ROWS, TILED) = ROWS, in_tiles(ROWS, CONFIG, OUT)
    # Tier of a given prior, which decides whether a denoiser is trained.
    START_TIER = CONFIG.prior.start and read_header(CONFIG.prior.start)["tier"]
    # Bands of the model, and the setting that they come from.
    if given := CONFIG.prior.start or CONFIG.prior.basis:
        MODEL_BANDS = list(read_header(given)["bands"])
        BANDS_FROM = f"prior.{'start' if CONFIG.prior.start else 'basis'}: {given}"
    else:
        MODEL_BANDS = BANDS
        named = "frame.bands" if CONFIG.frame.bands else "simulate.instrument"
        BANDS_FROM = named if CONFIG.frame.bands else f"{named}: {INSTRUMENT}"
    if CONFIG.em.laps and START_TIER == "latent":
        if "width" in read_header(CONFIG.prior.start)["network"]:
            raise ConfigError(
                f"em.laps: {CONFIG.em.laps} with prior.start: {CONFIG.prior.start}, which has"
                " a network; EM refits the mixture alone: train it without prior.network"
            )
except (ConfigError, InputError) as error:
    raise WorkflowError(str(error)) from None

# Fields as they are given, and as jobs work on them.
WHOLE_FIELDS = list(dict.fromkeys(row.field for row in GIVEN_ROWS))
FIELDS = list(dict.fromkeys(row.field for row in ROWS))
N_TILES = sum(map(len, TILED.values()))
CHUNKS = CONFIG.chunks or max(1, N_TILES // CONFIG.tiles.per_chunk)
CHUNKS = min(CHUNKS, len(FIELDS))
# On a cluster (`--jobs`) a job has what its profile asks for with `set-threads`, else one core.
# Only a run on this machine divides its cores; a job must not count those of its node.
ON_CLUSTER = workflow.remote_exec or workflow.resource_settings.nodes is not None
CORES = 1 if ON_CLUSTER else workflow.resource_settings.cores or 1
# Of a job that works on one chunk: all of them together fill the cores.
CHUNK_THREADS = max(1, CORES // CHUNKS)
SIMULATED = CONFIG.fields is None
# Whether sources may vary: the table of fields names epochs.
EPOCHS = any(row.epoch for row in ROWS)
TRUE_CURVES = SIMULATED and CONFIG.simulate.transients.share > 0
LAPS = CONFIG.em.laps
# Laps that have an evidence in closed form.
GAUSSIAN_LAPS = LAPS if CONFIG.prior.tier == "gaussian" else 0
# Cards of every product, besides METHOD and PRIOR.
META = {"CONFIG": config_hash(CONFIG), "VERSION": blendem.__version__}
CONFIGFILE = os.path.relpath(workflow.configfiles[-1]) if workflow.configfiles else ""


wildcard_constraints:
    chunk=r"\d+",
    lap=r"\d+",
    field=r"[A-Za-z0-9_.-]+",


# Settings of the sampler alone: statistics do not depend on them.
DRAWING = {"samples", "steps", "corrector", "amplitude_tolerance"}


def code_of(script, *more, without=()):
    """Source files behind a script, whose imports Snakemake does not see."""
    root = Path(workflow.basedir)
    path = root / f"workflow/scripts/{script}.py"
    found = set(modules_behind(path, root / "src", without))
    found |= {root / f"src/blendem/{name}.py" for name in more}
    return sorted(map(str, found))


def fields_of(chunk):
    """Fields of a chunk, dealt like cards."""
    return FIELDS[int(chunk) :: CHUNKS]


def rows_of(chunk):
    """Rows of the table of fields of a chunk, as plain values."""
    names = set(fields_of(chunk))
    return [row.plain() for row in ROWS if row.field in names]


def files_for(rows, fields):
    """Files that some fields of a table are read from."""
    rows = [row.plain() for row in rows if row.field in set(fields)]
    catalogs = [row["catalog"] for row in rows if row["catalog"]]
    return (
        [row["path"] for row in rows] + catalogs + [p for r in rows for p in r["psf"]]
    )


def files_of(chunk):
    """Files that the fields of a chunk are read from."""
    return files_for(ROWS, fields_of(chunk))


# Basis of all priors of the run, with the moments of the training set.
BASIS = f"{OUT}/prior/basis.eqx"
# Priors of galaxies and of the dust in front of them.
DUST_GALAXY, DUST_MAPS = f"{OUT}/dust/galaxy.eqx", f"{OUT}/dust/maps.eqx"


def prior_of(lap):
    """Prior of a lap."""
    return f"{OUT}/prior/{int(lap):02d}.eqx"


def all_chunks(pattern):
    """A file of every chunk."""
    return expand(f"{OUT}/{pattern}", chunk=range(CHUNKS))
