"""Reference data: slowly changing (type 2) tables of grids, units, staff, persons, organisations and modes.

One row per key and version. A load writes a version's row again only to close or correct it: the newest
`loaded_at` of a version counts (ReplacingMergeTree), so reads say FINAL. `row_digest` is of the attributes:
a reload compares it and adds nothing when nothing changed. Columns: pipeline/reference/schema.py.

Revision: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

#: Written by every load: what the row says, when, and by which load.
_LOAD = """row_digest UInt64,
            load_id String,
            loaded_at DateTime64(3, 'UTC')"""

_SETTINGS = "SETTINGS non_replicated_deduplication_window = 10000"


def upgrade() -> None:
    op.execute(
        f"""
        CREATE TABLE IF NOT EXISTS ref_grids
        (
            grid_code String,
            district_code LowCardinality(String) MATERIALIZED substring(grid_code, 1, 6),
            town_code LowCardinality(String) MATERIALIZED substring(grid_code, 1, 9),
            village_code LowCardinality(String) MATERIALIZED substring(grid_code, 1, 12),
            version UInt32,
            valid_from DateTime64(3, 'UTC'),
            valid_to Nullable(DateTime64(3, 'UTC')),
            grid_name String,
            grid_type LowCardinality(String),
            village_kind LowCardinality(Nullable(String)),
            boundary Nullable(String),
            centroid_lon Nullable(Float64),
            centroid_lat Nullable(Float64),
            area_km2 Nullable(Float64),
            unit_count Nullable(UInt32),
            building_count Nullable(UInt32),
            dwelling_count Nullable(UInt32),
            rental_count Nullable(UInt32),
            household_count Nullable(UInt32),
            population_registered Nullable(UInt32),
            population_floating Nullable(UInt32),
            elderly_60_count Nullable(UInt32),
            elderly_alone_count Nullable(UInt32),
            disabled_count Nullable(UInt32),
            hardship_count Nullable(UInt32),
            children_care_count Nullable(UInt32),
            enterprise_count Nullable(UInt32),
            shop_count Nullable(UInt32),
            school_count Nullable(UInt32),
            medical_count Nullable(UInt32),
            risk_tags Array(LowCardinality(String)),
            shelter_code Nullable(String),
            party_org_code Nullable(String),
            lead_worker_key Nullable(String),
            worker_keys Array(String),
            leader_in_residence_key Nullable(String),
            police_deputy_key Nullable(String),
            department_route Array(Tuple(category String, department String)),
            status LowCardinality(String),
            updated_at Nullable(DateTime64(3, 'UTC')),
            source_system LowCardinality(Nullable(String)),
            {_LOAD}
        )
        ENGINE = ReplacingMergeTree(loaded_at) ORDER BY (grid_code, version)
        {_SETTINGS}
        """
    )
    op.execute(
        f"""
        CREATE TABLE IF NOT EXISTS ref_units
        (
            unit_code String,
            version UInt32,
            valid_from DateTime64(3, 'UTC'),
            valid_to Nullable(DateTime64(3, 'UTC')),
            unit_name Nullable(String),
            unit_head_key Nullable(String),
            updated_at Nullable(DateTime64(3, 'UTC')),
            source_system LowCardinality(Nullable(String)),
            {_LOAD}
        )
        ENGINE = ReplacingMergeTree(loaded_at) ORDER BY (unit_code, version)
        {_SETTINGS}
        """
    )
    op.execute(
        f"""
        CREATE TABLE IF NOT EXISTS ref_staff
        (
            worker_key String,
            version UInt32,
            valid_from DateTime64(3, 'UTC'),
            valid_to Nullable(DateTime64(3, 'UTC')),
            kind LowCardinality(String),
            name_masked Nullable(String),
            grid_code Nullable(String),
            district_code LowCardinality(String),
            department LowCardinality(Nullable(String)),
            active_from DateTime64(3, 'UTC'),
            active_to Nullable(DateTime64(3, 'UTC')),
            device_key Nullable(String),
            channel_rights Array(LowCardinality(String)),
            loans Array(Tuple(
                grid_code String, valid_from DateTime64(3, 'UTC'), valid_to Nullable(DateTime64(3, 'UTC'))
            )),
            person_key Nullable(String),
            key_version Nullable(UInt16),
            updated_at Nullable(DateTime64(3, 'UTC')),
            source_system LowCardinality(Nullable(String)),
            {_LOAD}
        )
        ENGINE = ReplacingMergeTree(loaded_at) ORDER BY (worker_key, version)
        {_SETTINGS}
        """
    )
    op.execute(
        f"""
        CREATE TABLE IF NOT EXISTS ref_persons
        (
            person_key String,
            version UInt32,
            valid_from DateTime64(3, 'UTC'),
            valid_to Nullable(DateTime64(3, 'UTC')),
            key_version Nullable(UInt16),
            name_masked Nullable(String),
            gender LowCardinality(Nullable(String)),
            age_band LowCardinality(Nullable(String)),
            phone_masked Nullable(String),
            residence_kind LowCardinality(Nullable(String)),
            home_grid_code Nullable(String),
            home_unit_code Nullable(String),
            building_code Nullable(String),
            household_key Nullable(String),
            elderly_alone_flag Nullable(Bool),
            disability_flag Nullable(Bool),
            hardship_flag Nullable(Bool),
            child_care_flag Nullable(Bool),
            health_care_flag Nullable(Bool),
            pingantong_user_flag Nullable(Bool),
            visit_rhythm LowCardinality(Nullable(String)),
            last_visit_at Nullable(DateTime64(3, 'UTC')),
            volunteer_flag Nullable(Bool),
            grid_worker_kind LowCardinality(Nullable(String)),
            consent_basis LowCardinality(Nullable(String)),
            updated_at Nullable(DateTime64(3, 'UTC')),
            source_system LowCardinality(Nullable(String)),
            deleted_at Nullable(DateTime64(3, 'UTC')),
            {_LOAD}
        )
        ENGINE = ReplacingMergeTree(loaded_at) ORDER BY (person_key, version)
        {_SETTINGS}
        """
    )
    op.execute(
        f"""
        CREATE TABLE IF NOT EXISTS ref_organisations
        (
            org_code String,
            version UInt32,
            valid_from DateTime64(3, 'UTC'),
            valid_to Nullable(DateTime64(3, 'UTC')),
            kind LowCardinality(Nullable(String)),
            name String,
            grid_code Nullable(String),
            unit_code Nullable(String),
            industry LowCardinality(Nullable(String)),
            staff_band LowCardinality(Nullable(String)),
            key_industry_flag Nullable(Bool),
            updated_at Nullable(DateTime64(3, 'UTC')),
            source_system LowCardinality(Nullable(String)),
            {_LOAD}
        )
        ENGINE = ReplacingMergeTree(loaded_at) ORDER BY (org_code, version)
        {_SETTINGS}
        """
    )
    op.execute(
        f"""
        CREATE TABLE IF NOT EXISTS ref_modes
        (
            mode LowCardinality(String),
            area_code LowCardinality(String),
            valid_from DateTime64(3, 'UTC'),
            version UInt32,
            level LowCardinality(String),
            valid_to Nullable(DateTime64(3, 'UTC')),
            authority LowCardinality(String),
            {_LOAD}
        )
        ENGINE = ReplacingMergeTree(loaded_at) ORDER BY (mode, area_code, valid_from, version)
        {_SETTINGS}
        """
    )
    op.execute(
        f"""
        CREATE TABLE IF NOT EXISTS ref_loads
        (
            kind LowCardinality(String),
            load_id String,
            rows UInt64 COMMENT 'rows written; 0 when the files held nothing new',
            digest String COMMENT 'of the rows written',
            loaded_at DateTime64(3, 'UTC') COMMENT 'when it was announced, after its rows'
        )
        ENGINE = ReplacingMergeTree ORDER BY (kind, loaded_at, load_id)
        {_SETTINGS}
        """
    )


def downgrade() -> None:
    for name in ("loads", "modes", "organisations", "persons", "staff", "units", "grids"):
        op.execute(f"DROP TABLE ref_{name}")
