"""Tables that can be queried directly, over the Delta tables of a folder, for Polars. See README.md in this folder."""

import polars as pl


def tables(folder):
    """Lazy frames by name: batches, files, error_counts, errors, fleet_codes, vehicles."""
    lake = {name: pl.scan_delta(f"{folder}/{name}") for name in ("files", "error_counts", "errors", "batches", "fleet")}
    versions = (
        lake["files"]
        .group_by("version")
        .agg(pl.col("live").sum().alias("lives"), pl.col("last_line").sum().alias("live_lines"))
        .filter(pl.col("lives") > 0)
        .select("version", "live_lines")
    )
    sums = ("bytes", "lines", "long_lines", "error_lines", "occurrences")
    files = (
        versions.join(lake["files"], on="version")
        .group_by("batch_id", "file_id", "name")
        .agg(
            pl.col("generation").max(),
            *(pl.col(name).sum() for name in sums),
            pl.col("first_ts").min(),
            pl.col("last_ts").max(),
            pl.col("sha256").sort_by("epoch").drop_nulls().last(),
            pl.col("rules").sort_by("epoch").drop_nulls().last(),
            pl.col("uploaded_at").max(),
            pl.col("failure").max(),
        )
        .rename({"occurrences": "errors"})
    )
    error_counts = (
        versions.join(lake["error_counts"], on="version")
        .group_by("batch_id", "file", "code", "severity")
        .agg(
            pl.col("count").filter(~pl.col("active")).sum().alias("inactive"),
            pl.col("count").sum(),
            pl.col("first_seen").min(),
            pl.col("last_seen").max(),
            pl.col("rule").sort_by("example_line").first(),
            pl.col("example_text").sort_by("example_line").first(),
            pl.col("example_line").min(),
        )
    )
    errors = (
        versions.join(lake["errors"], on="version").filter(pl.col("line") <= pl.col("live_lines")).drop("live_lines", "version")
    )
    described = ("batch_id", "vehicle_id", "vin", "platform", "firmware", "labels", "created_at")
    recorded = files.group_by("batch_id").agg(
        pl.col("first_ts").min().alias("recorded_first"), pl.col("last_ts").max().alias("recorded_last")
    )
    batches = (
        lake["batches"]
        .group_by(*described)
        .agg(pl.col("live").sum(), pl.col("completed").sum())
        .filter(pl.col("live") > 0)
        .join(recorded, on="batch_id", how="left")
        .with_columns(
            pl.when(pl.col("completed") > 0).then(pl.lit("completed")).otherwise(pl.lit("pending")).alias("status"),
            pl.coalesce("recorded_first", "created_at").alias("recorded_first"),
            pl.coalesce("recorded_last", "created_at").alias("recorded_last"),
        )
        .drop("live", "completed")
    )
    columns = ("firmware", "platform", "vehicle_id", "vin", "code", "count", "inactive", "batches", "first_seen", "last_seen")
    fleet_codes = (
        lake["fleet"].filter(pl.col("subject") == "code").group_by(*columns).agg(pl.col("live").sum()).filter(pl.col("live") > 0)
    ).drop("live")
    latest = lambda name: pl.col(name).sort_by("recorded_first", "batch_id").last()
    vehicles = batches.group_by("vin").agg(
        latest("vehicle_id"),
        latest("platform"),
        latest("firmware"),
        pl.len().alias("batches"),
        pl.col("recorded_first").min().alias("first_seen"),
        pl.col("recorded_last").max().alias("last_seen"),
    )
    return {
        "batches": batches,
        "files": files,
        "error_counts": error_counts,
        "errors": errors,
        "fleet_codes": fleet_codes,
        "vehicles": vehicles,
    }
