-- Who may do what on a ClickHouse server (25.8 or newer). Run as an administrator, again after an upgrade and to change a
-- password: limits, policies, quota and passwords become what stands here. A grant that an older version gave and this one
-- does not stays until it is revoked (docs/upgrade.md names such).
--   GRIDPIPE_INGEST_SHA256=… envsubst < infra/security/clickhouse/access.sql | clickhouse client --multiquery
-- Each ${…_SHA256} is the hex SHA-256 of that user's password: printf %s "$PASSWORD" | sha256sum
-- Read with it: docs/security.md. Table functions (url, file, remote, s3, executable) are granted to nobody.

-- Limits that a session cannot lift. Not OR REPLACE: a profile or user made anew loses the roles that refer to it.
CREATE SETTINGS PROFILE IF NOT EXISTS grid_reading;
ALTER SETTINGS PROFILE grid_reading SETTINGS
    readonly = 2 CONST, max_execution_time = 60 MAX 60, max_memory_usage = 8000000000 MAX 8000000000,
    max_result_rows = 1000000 MAX 1000000, allow_ddl = 0 CONST, allow_introspection_functions = 0 CONST;
CREATE SETTINGS PROFILE IF NOT EXISTS grid_writing;
ALTER SETTINGS PROFILE grid_writing SETTINGS
    allow_ddl = 0 CONST, async_insert = 0 CONST, max_execution_time = 120 MAX 120,
    allow_introspection_functions = 0 CONST;

-- gridpipe worker: outcomes, case states, positions. It reads what it deduplicates and enriches with.
CREATE ROLE IF NOT EXISTS grid_ingest SETTINGS PROFILE 'grid_writing';
GRANT INSERT ON grid.events TO grid_ingest;
GRANT INSERT ON grid.rejections TO grid_ingest;
GRANT INSERT ON grid.duplicates TO grid_ingest;
GRANT INSERT ON grid.quarantine TO grid_ingest;
GRANT INSERT ON grid.case_events TO grid_ingest;
GRANT INSERT ON grid.cases TO grid_ingest;
GRANT INSERT ON grid.incarnations TO grid_ingest;
GRANT INSERT ON grid.ref_matters TO grid_ingest;
GRANT INSERT ON grid.rule_sets TO grid_ingest;
GRANT INSERT ON grid.pseudonym_keys TO grid_ingest;
GRANT SELECT ON grid.* TO grid_ingest;
GRANT SELECT ON system.tables TO grid_ingest;
GRANT SELECT ON system.databases TO grid_ingest;

-- gridpipe reference load: base data and nothing else.
CREATE ROLE IF NOT EXISTS grid_loader SETTINGS PROFILE 'grid_writing';
GRANT SELECT, INSERT ON grid.ref_grids TO grid_loader;
GRANT SELECT, INSERT ON grid.ref_units TO grid_loader;
GRANT SELECT, INSERT ON grid.ref_staff TO grid_loader;
GRANT SELECT, INSERT ON grid.ref_persons TO grid_loader;
GRANT SELECT, INSERT ON grid.ref_organisations TO grid_loader;
GRANT SELECT, INSERT ON grid.ref_modes TO grid_loader;
GRANT SELECT, INSERT ON grid.ref_loads TO grid_loader;
-- Only a load has the numbers: whoever was erased under an older key is listed by it under the new one, too.
GRANT SELECT, INSERT ON grid.ref_erasures TO grid_loader;
GRANT SELECT ON grid.ref_erased_cases TO grid_loader;
-- Not INSERT: the key that the store is filled with is a gateway's or worker's, never that of who loads first.
GRANT SELECT ON grid.pseudonym_keys TO grid_loader;
GRANT SELECT ON grid.alembic_version TO grid_loader;

-- gridpipe api and gateway: reads for answers that are masked and audited.
CREATE ROLE IF NOT EXISTS grid_api SETTINGS PROFILE 'grid_reading';
GRANT SELECT ON grid.* TO grid_api;
GRANT SELECT ON system.tables TO grid_api;
GRANT SELECT ON system.databases TO grid_api;
-- Whether something was stored since (the page), and how full the disks are (/metrics).
GRANT SELECT ON system.parts TO grid_api;
GRANT SELECT ON system.disks TO grid_api;

-- Grafana, reports, analysts: figures, no persons. Left out of each table:
--   events: submission_id, actor_key, actor_name, actor_phone, persons, person_facts, lon, lat, address, photos, title, description, void_reason, attributes, request_id, unit_code, l2_hi, l2_lo, content_hash, organisation_name, level
--   rejections: submission_id, actor_key, actor_name, actor_phone, persons, person_facts, lon, lat, address, photos, title, description, void_reason, attributes, request_id, unit_code, l2_hi, l2_lo, content_hash, organisation_name, level
--   ref_grids: lead_worker_key, worker_keys, leader_in_residence_key, police_deputy_key
--   ref_units: unit_head_key
--   ref_persons, ref_staff, quarantine, ref_erasures, ref_erased_cases: all of them
CREATE ROLE IF NOT EXISTS grid_analyst SETTINGS PROFILE 'grid_reading';
GRANT SELECT (
    _inc, _part, _off, _idx, _blk_lo, _blk_hi, _rules, event_id, source, event_type, case_id, occurred_at,
    ingested_at, channel, matter_code, grid_code, actor_type, crs, organisation_code, due_at, primary_case_id,
    rating, department, self_handled, backfill, key_version, id_hi, id_lo, grid_found, grid_active,
    grid_version, grid_name, grid_type, grid_risk_tags, unit_found, point_in_grid, point_distance_m,
    staff_found, staff_active, staff_kind, staff_department, staff_in_grid, staff_in_district,
    staff_channel_rights, persons_given, persons_found, organisation_found, route_department, outcome,
    reasons, missing_fields, rule_results, evidence_pending, life_safety, category, urgency, lead_department,
    response_limit_seconds, resolution_limit_seconds, mode, mode_level, catalogue_version,
    late_beyond_horizon, time_adjusted, district_code, town_code, village_code, stored_at
) ON grid.events TO grid_analyst;
GRANT SELECT (
    _inc, _part, _off, _idx, _blk_lo, _blk_hi, _rules, event_id, source, event_type, case_id, occurred_at,
    ingested_at, channel, matter_code, grid_code, actor_type, crs, organisation_code, due_at, primary_case_id,
    rating, department, self_handled, backfill, key_version, id_hi, id_lo, grid_found, grid_active,
    grid_version, grid_name, grid_type, grid_risk_tags, unit_found, point_in_grid, point_distance_m,
    staff_found, staff_active, staff_kind, staff_department, staff_in_grid, staff_in_district,
    staff_channel_rights, persons_given, persons_found, organisation_found, route_department, outcome,
    reasons, missing_fields, rule_results, evidence_pending, life_safety, category, urgency, lead_department,
    response_limit_seconds, resolution_limit_seconds, mode, mode_level, catalogue_version,
    late_beyond_horizon, time_adjusted, district_code, town_code, village_code, primary_reason, stored_at
) ON grid.rejections TO grid_analyst;
-- Granted by earlier releases; what is granted stays until it is taken back.
REVOKE SELECT (level) ON grid.events FROM grid_analyst;
REVOKE SELECT (level) ON grid.rejections FROM grid_analyst;
GRANT SELECT (
    grid_code, district_code, town_code, village_code, version, valid_from, valid_to, grid_name, grid_type,
    village_kind, boundary, centroid_lon, centroid_lat, area_km2, unit_count, building_count, dwelling_count,
    rental_count, household_count, population_registered, population_floating, elderly_60_count,
    elderly_alone_count, disabled_count, hardship_count, children_care_count, enterprise_count, shop_count,
    school_count, medical_count, risk_tags, shelter_code, party_org_code, department_route, status,
    updated_at, source_system, row_digest, load_id, loaded_at
) ON grid.ref_grids TO grid_analyst;
GRANT SELECT (
    unit_code, version, valid_from, valid_to, unit_name, updated_at, source_system, row_digest, load_id,
    loaded_at
) ON grid.ref_units TO grid_analyst;
GRANT SELECT ON grid.duplicates TO grid_analyst;
GRANT SELECT ON grid.case_events TO grid_analyst;
GRANT SELECT ON grid.cases TO grid_analyst;
GRANT SELECT ON grid.case_current TO grid_analyst;
GRANT SELECT ON grid.case_as_of TO grid_analyst;
GRANT SELECT ON grid.kpi_cohort TO grid_analyst;
GRANT SELECT ON grid.kpi_flow TO grid_analyst;
GRANT SELECT ON grid.ref_matters TO grid_analyst;
GRANT SELECT ON grid.ref_modes TO grid_analyst;
-- Grafana is one user for all who look, and the business dashboard asks 15 times a minute for each of them.
CREATE QUOTA OR REPLACE grid_analyst KEYED BY user_name FOR INTERVAL 1 minute MAX queries = 3000,
    execution_time = 1200 TO grid_analyst;

-- Erasing a person: `gridpipe person erase`. Held by nobody by default; granted for the time of the task.
CREATE ROLE IF NOT EXISTS grid_eraser;
GRANT SELECT, INSERT, ALTER UPDATE, ALTER DELETE ON grid.* TO grid_eraser;
GRANT SELECT ON system.mutations TO grid_eraser;
GRANT SELECT ON system.tables TO grid_eraser;

-- Migrations: `gridpipe migrate`; and `gridpipe up` on a server, which migrates and runs every role as one user.
CREATE ROLE IF NOT EXISTS grid_admin;
GRANT ALL ON grid.* TO grid_admin;
GRANT SELECT ON system.* TO grid_admin;

-- Districts: an analyst of one district sees that district. A role per district; policies say who sees what, and
-- of a table that has any, whoever has none sees no row (users_without_row_policies_can_read_rows = false). Every
-- table with rows of cases or reports has them; lists of grids, units, matters and modes are the whole city's.
-- grid_city adds to grid_analyst the rows of every district.
CREATE ROLE IF NOT EXISTS grid_city;
-- Sizes of tables, which no row policy cuts down to a district: Grafana's dashboard of the sink.
GRANT SELECT ON system.parts TO grid_city;
-- Their names: system.parts leaves out what its reader may not know of. No row can be read by it.
GRANT SHOW TABLES ON grid.* TO grid_city;
CREATE ROLE IF NOT EXISTS grid_analyst_440703;
CREATE ROLE IF NOT EXISTS grid_analyst_440704;
CREATE ROLE IF NOT EXISTS grid_analyst_440705;
CREATE ROLE IF NOT EXISTS grid_analyst_440781;
CREATE ROLE IF NOT EXISTS grid_analyst_440783;
CREATE ROLE IF NOT EXISTS grid_analyst_440784;
CREATE ROLE IF NOT EXISTS grid_analyst_440785;
GRANT grid_analyst TO grid_analyst_440703, grid_analyst_440704, grid_analyst_440705, grid_analyst_440781,
    grid_analyst_440783, grid_analyst_440784, grid_analyst_440785;
CREATE ROW POLICY OR REPLACE whole_city ON grid.events FOR SELECT USING 1
    TO grid_ingest, grid_api, grid_eraser, grid_admin, grid_city;
CREATE ROW POLICY OR REPLACE d440703 ON grid.events FOR SELECT USING district_code = '440703' TO grid_analyst_440703;
CREATE ROW POLICY OR REPLACE d440704 ON grid.events FOR SELECT USING district_code = '440704' TO grid_analyst_440704;
CREATE ROW POLICY OR REPLACE d440705 ON grid.events FOR SELECT USING district_code = '440705' TO grid_analyst_440705;
CREATE ROW POLICY OR REPLACE d440781 ON grid.events FOR SELECT USING district_code = '440781' TO grid_analyst_440781;
CREATE ROW POLICY OR REPLACE d440783 ON grid.events FOR SELECT USING district_code = '440783' TO grid_analyst_440783;
CREATE ROW POLICY OR REPLACE d440784 ON grid.events FOR SELECT USING district_code = '440784' TO grid_analyst_440784;
CREATE ROW POLICY OR REPLACE d440785 ON grid.events FOR SELECT USING district_code = '440785' TO grid_analyst_440785;
CREATE ROW POLICY OR REPLACE whole_city ON grid.rejections FOR SELECT USING 1
    TO grid_ingest, grid_api, grid_eraser, grid_admin, grid_city;
CREATE ROW POLICY OR REPLACE d440703 ON grid.rejections FOR SELECT USING district_code = '440703' TO grid_analyst_440703;
CREATE ROW POLICY OR REPLACE d440704 ON grid.rejections FOR SELECT USING district_code = '440704' TO grid_analyst_440704;
CREATE ROW POLICY OR REPLACE d440705 ON grid.rejections FOR SELECT USING district_code = '440705' TO grid_analyst_440705;
CREATE ROW POLICY OR REPLACE d440781 ON grid.rejections FOR SELECT USING district_code = '440781' TO grid_analyst_440781;
CREATE ROW POLICY OR REPLACE d440783 ON grid.rejections FOR SELECT USING district_code = '440783' TO grid_analyst_440783;
CREATE ROW POLICY OR REPLACE d440784 ON grid.rejections FOR SELECT USING district_code = '440784' TO grid_analyst_440784;
CREATE ROW POLICY OR REPLACE d440785 ON grid.rejections FOR SELECT USING district_code = '440785' TO grid_analyst_440785;
CREATE ROW POLICY OR REPLACE whole_city ON grid.duplicates FOR SELECT USING 1
    TO grid_ingest, grid_api, grid_eraser, grid_admin, grid_city;
CREATE ROW POLICY OR REPLACE d440703 ON grid.duplicates FOR SELECT USING substring(grid_code, 1, 6) = '440703' TO grid_analyst_440703;
CREATE ROW POLICY OR REPLACE d440704 ON grid.duplicates FOR SELECT USING substring(grid_code, 1, 6) = '440704' TO grid_analyst_440704;
CREATE ROW POLICY OR REPLACE d440705 ON grid.duplicates FOR SELECT USING substring(grid_code, 1, 6) = '440705' TO grid_analyst_440705;
CREATE ROW POLICY OR REPLACE d440781 ON grid.duplicates FOR SELECT USING substring(grid_code, 1, 6) = '440781' TO grid_analyst_440781;
CREATE ROW POLICY OR REPLACE d440783 ON grid.duplicates FOR SELECT USING substring(grid_code, 1, 6) = '440783' TO grid_analyst_440783;
CREATE ROW POLICY OR REPLACE d440784 ON grid.duplicates FOR SELECT USING substring(grid_code, 1, 6) = '440784' TO grid_analyst_440784;
CREATE ROW POLICY OR REPLACE d440785 ON grid.duplicates FOR SELECT USING substring(grid_code, 1, 6) = '440785' TO grid_analyst_440785;
CREATE ROW POLICY OR REPLACE whole_city ON grid.cases FOR SELECT USING 1
    TO grid_ingest, grid_api, grid_eraser, grid_admin, grid_city;
CREATE ROW POLICY OR REPLACE d440703 ON grid.cases FOR SELECT USING substring(grid_code, 1, 6) = '440703' TO grid_analyst_440703;
CREATE ROW POLICY OR REPLACE d440704 ON grid.cases FOR SELECT USING substring(grid_code, 1, 6) = '440704' TO grid_analyst_440704;
CREATE ROW POLICY OR REPLACE d440705 ON grid.cases FOR SELECT USING substring(grid_code, 1, 6) = '440705' TO grid_analyst_440705;
CREATE ROW POLICY OR REPLACE d440781 ON grid.cases FOR SELECT USING substring(grid_code, 1, 6) = '440781' TO grid_analyst_440781;
CREATE ROW POLICY OR REPLACE d440783 ON grid.cases FOR SELECT USING substring(grid_code, 1, 6) = '440783' TO grid_analyst_440783;
CREATE ROW POLICY OR REPLACE d440784 ON grid.cases FOR SELECT USING substring(grid_code, 1, 6) = '440784' TO grid_analyst_440784;
CREATE ROW POLICY OR REPLACE d440785 ON grid.cases FOR SELECT USING substring(grid_code, 1, 6) = '440785' TO grid_analyst_440785;
CREATE ROW POLICY OR REPLACE whole_city ON grid.case_events FOR SELECT USING 1
    TO grid_ingest, grid_api, grid_eraser, grid_admin, grid_city;
CREATE ROW POLICY OR REPLACE d440703 ON grid.case_events FOR SELECT
    USING arrayExists(e -> substring(e.grid_code, 1, 6) = '440703', events) TO grid_analyst_440703;
CREATE ROW POLICY OR REPLACE d440704 ON grid.case_events FOR SELECT
    USING arrayExists(e -> substring(e.grid_code, 1, 6) = '440704', events) TO grid_analyst_440704;
CREATE ROW POLICY OR REPLACE d440705 ON grid.case_events FOR SELECT
    USING arrayExists(e -> substring(e.grid_code, 1, 6) = '440705', events) TO grid_analyst_440705;
CREATE ROW POLICY OR REPLACE d440781 ON grid.case_events FOR SELECT
    USING arrayExists(e -> substring(e.grid_code, 1, 6) = '440781', events) TO grid_analyst_440781;
CREATE ROW POLICY OR REPLACE d440783 ON grid.case_events FOR SELECT
    USING arrayExists(e -> substring(e.grid_code, 1, 6) = '440783', events) TO grid_analyst_440783;
CREATE ROW POLICY OR REPLACE d440784 ON grid.case_events FOR SELECT
    USING arrayExists(e -> substring(e.grid_code, 1, 6) = '440784', events) TO grid_analyst_440784;
CREATE ROW POLICY OR REPLACE d440785 ON grid.case_events FOR SELECT
    USING arrayExists(e -> substring(e.grid_code, 1, 6) = '440785', events) TO grid_analyst_440785;

-- People and programs. No password is kept here; the default user is switched off in users.d/default-off.xml.
CREATE USER IF NOT EXISTS gridpipe_worker IDENTIFIED WITH sha256_hash BY '${GRIDPIPE_INGEST_SHA256}'
    HOST IP '10.0.0.0/8';
ALTER USER gridpipe_worker IDENTIFIED WITH sha256_hash BY '${GRIDPIPE_INGEST_SHA256}'
    HOST IP '10.0.0.0/8';
CREATE USER IF NOT EXISTS gridpipe_api IDENTIFIED WITH sha256_hash BY '${GRIDPIPE_API_SHA256}'
    HOST IP '10.0.0.0/8';
ALTER USER gridpipe_api IDENTIFIED WITH sha256_hash BY '${GRIDPIPE_API_SHA256}'
    HOST IP '10.0.0.0/8';
CREATE USER IF NOT EXISTS gridpipe_loader IDENTIFIED WITH sha256_hash BY '${GRIDPIPE_LOADER_SHA256}'
    HOST IP '10.0.0.0/8';
ALTER USER gridpipe_loader IDENTIFIED WITH sha256_hash BY '${GRIDPIPE_LOADER_SHA256}'
    HOST IP '10.0.0.0/8';
CREATE USER IF NOT EXISTS gridpipe_grafana IDENTIFIED WITH sha256_hash BY '${GRIDPIPE_GRAFANA_SHA256}'
    HOST IP '10.0.0.0/8';
ALTER USER gridpipe_grafana IDENTIFIED WITH sha256_hash BY '${GRIDPIPE_GRAFANA_SHA256}'
    HOST IP '10.0.0.0/8';
CREATE USER IF NOT EXISTS gridpipe_admin IDENTIFIED WITH sha256_hash BY '${GRIDPIPE_ADMIN_SHA256}'
    HOST IP '10.0.0.0/8';
ALTER USER gridpipe_admin IDENTIFIED WITH sha256_hash BY '${GRIDPIPE_ADMIN_SHA256}'
    HOST IP '10.0.0.0/8';
GRANT grid_ingest TO gridpipe_worker;
GRANT grid_api TO gridpipe_api;
GRANT grid_loader TO gridpipe_loader;
GRANT grid_analyst, grid_city TO gridpipe_grafana;
GRANT grid_admin TO gridpipe_admin;
