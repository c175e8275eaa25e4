// An explanation or a case as lines of words: nothing here is markup, all of it becomes text.

import { distance, duration, instant, listed } from "./format.js";
import { CODED, FIELDS, RULE_INPUTS, STATES, VALUES } from "./texts.js";

const at = (object, path) => path.split(".").reduce((found, name) => (found === null || found === undefined ? found : found[name]), object);

export const word = (pair, lang) => (pair ? pair[lang === "zh" ? 0 : 1] : null);
export const stateName = (name, lang) => word(STATES[name], lang) || name || "—";
export const fieldName = (name, lang) => word(FIELDS[name], lang) || name;

function plain(value, name, { lang, names }) {
  if (value === null || value === undefined || value === "") return null;
  if (name.endsWith("photo_taken_at")) return listed(value.map((at) => (at ? instant(at, lang) : "—")), lang) || null;
  if (name.endsWith("_at") || name.startsWith("matter.effective")) return instant(value, lang);
  if (name.endsWith("_limit_seconds")) return duration(value, lang);
  if (name.endsWith("_distance_m")) return distance(value, lang);
  if (name === "event_type") return stateName(value, lang);
  if (value === true) return lang === "zh" ? "是" : "yes";
  if (value === false) return lang === "zh" ? "否" : "no";
  if (name === "matter_code") return names.matter(value);
  if (name === "channel") return names.channel(value);
  if (name.endsWith("department")) return names.department(value);
  if (name === "enrichment.district_code" || name === "enrichment.town_code") return `${value} ${names.area(value)}`.trim();
  if (CODED.has(name)) {
    const codes = [value].flat();
    if (!codes.length) return null;
    return listed(codes.map((code) => word(VALUES[code], lang) || (name.includes("channel") ? names.channel(code) : code)), lang);
  }
  if (name === "enrichment.persons") return value.map((person) => personText(person, lang)).join(lang === "zh" ? "；" : "; ") || null;
  if (Array.isArray(value)) {
    if (!value.length) return null;
    return listed(value.map((item) => (item !== null && typeof item === "object" ? Object.values(item).flat().filter((x) => x !== null && x !== "").join(" ") : String(item))), lang);
  }
  if (typeof value === "object") return Object.entries(value).map(([key, item]) => `${key} ${item}`).join(" ");
  return String(value);
}

function personText(person, lang) {
  const found = person.found ? (lang === "zh" ? "在册" : "on record") : (lang === "zh" ? "不在册" : "not on record");
  const codes = [person.role, person.gender, person.residence_kind, ...(person.flags || [])];
  const words = codes.filter(Boolean).map((code) => word(VALUES[code], lang) || code);
  return [person.key, found, person.age_band, person.home_grid_code, ...words].filter(Boolean).join(" ");
}

function pairs(object, paths, words) {
  return paths.map((path) => ({ name: path, label: fieldName(path, words.lang), value: plain(at(object, path), path, words) }))
    .filter((pair) => pair.value !== null);
}

const CAME = ["source", "event_id", "event_type", "case_id", "occurred_at", "received_at", "channel", "matter_code", "grid_code", "unit_code"];
const CONTENT = [
  "submission_id", "title", "description", "address", "lon", "lat", "crs", "organisation_name", "photos", "photo_hashes", "photo_taken_at",
  "department", "due_at", "content.level", "primary_case_id", "void_reason", "rating", "self_handled",
];
const ACTOR = ["actor.type", "actor.key", "actor.name", "actor.phone"];
const LOOKED_UP = Object.keys(FIELDS).filter((name) => name.startsWith("enrichment.") || name.startsWith("decision."));
const PLACE = ["stored_at", "position.incarnation", "position.partition", "position.offset", "position.index", "position.block", "position.rules"];

export function describeEvent(event, words) {
  const content = event.content || {};
  const flat = { ...event, ...content };
  const came = pairs(flat, [...CAME, ...CONTENT], words);
  if (content.withheld) came.push({ name: "withheld", label: fieldName("description", words.lang), value: words.t("withheld") });
  if (event.actor && event.actor.protected) came.push({ name: "actor", label: fieldName("actor.protected", words.lang), value: plain(true, "x", words) });
  else came.push(...pairs(event, ACTOR, words));
  came.push(...pairs(event, ["missing_fields", "level", "detail", "duplicate_of.source", "duplicate_of.event_id", "duplicate_of.case_id"], words));
  return {
    came,
    lookedUp: pairs(event, LOOKED_UP, words),
    position: pairs(event, PLACE, words),
    copies: [...(event.copies || []), ...(event.conflicts || [])].map((copy) =>
      [copy.level || words.names.reason(copy.reason), instant(copy.received_at, words.lang), `${copy.position.partition}:${copy.position.offset}:${copy.position.index}`].join("  ")),
    rules: (event.rules || []).map((rule) => ({
      number: rule.number,
      result: rule.result,
      mark: { true: "✓", false: "✗" }[rule.result] || "?",
      name: words.lang === "zh" ? rule.name_zh : rule.name_en,
      reasons: rule.reasons,
      inputs: (RULE_INPUTS[rule.number] || []).map((path) => {
        const found = plain(at(event, path), path, words);
        return `${fieldName(path, words.lang)}: ${found === null ? "—" : found}`;
      }).join(" · "),
    })),
  };
}

// Only what is not plain from the state: that the report was rejected, and why; that its time is yet to come.
function reportText(report, words) {
  if (!report) return null;
  const said = report.outcome === "rejected" ? [stateName("REJECTED", words.lang), ...report.reasons.map(words.names.reason)] : [];
  if (report.ahead) said.push(`${words.t("ahead")} ${instant(report.occurred_at, words.lang)}`);
  return said.join("  ");
}

export function describeCase(record, words) {
  const facts = [
    ["state", words.t("state"), stateName(record.state, words.lang)],
    ["report", stateName("REPORTED", words.lang), reportText(record.report, words)],
    ["matter", fieldName("matter_code", words.lang), record.matter_code && words.names.matter(record.matter_code)],
    ["grid", fieldName("grid_code", words.lang), record.grid_code],
    ["department", words.lang === "zh" ? "部门" : "department", record.department && words.names.department(record.department)],
    ["response_due", words.t("responseDue"), instant(record.limits.response_due_at, words.lang)],
    ["due", words.t("due"), instant(record.limits.due_at, words.lang)],
    ["primary", words.lang === "zh" ? "主件" : "primary case", record.primary_case_id],
    ["merged", words.lang === "zh" ? "并入的案件" : "merged cases", listed(record.merged_case_ids, words.lang)],
    ["rating", words.lang === "zh" ? "评价" : "rating", record.rating],
  ].filter(([, , value]) => value !== null && value !== undefined && value !== "").map(([name, label, value]) => ({ name, label, value: String(value) }));
  const steps = record.events.map((event) => ({
    id: `${event.source}/${event.event_id}`,
    source: event.source,
    event_id: event.event_id,
    at: instant(event.occurred_at, words.lang),
    name: stateName(event.event_type, words.lang),
    detail: [event.state_after && `→ ${stateName(event.state_after, words.lang)}`, event.department && words.names.department(event.department), event.rating && `★ ${event.rating}`].filter(Boolean).join("  "),
    ok: event.transition_ok,
  }));
  return { facts, steps };
}
