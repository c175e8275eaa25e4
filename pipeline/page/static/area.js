// Areas: what a column shows, how the map is coloured, the way down from districts to grids.

import { briefDuration, count, duration, percent } from "./format.js";
import { DISTRICTS, TOWNS } from "./tiles.js";

export const LEVELS = ["district", "town", "village", "grid"];
export const COLUMNS = [
  "reports", "admission_rate", "cases", "closed", "closure_rate", "response_rate", "timely_response_rate",
  "closure_on_time_rate", "open", "overdue", "response_p50", "response_p90", "resolution_p50", "satisfaction_rate", "ratings",
];
export const METRICS = [
  "closure_rate", "response_rate", "timely_response_rate", "closure_on_time_rate", "handling_on_time_rate", "admission_rate",
  "satisfaction_rate", "demand_resolution_rate", "rework_rate", "extension_rate", "return_rate", "void_rate", "duplicate_rate",
  "reports", "admitted_reports", "rejected_reports", "cases", "voided", "merged", "responded", "closed", "open", "overdue",
  "unproven", "ratings", "orphans", "orphans_overdue", "illegal_events", "late_events", "negative_durations",
  "response_p50", "response_p90", "response_p99", "dispatch_p50", "dispatch_p90", "dispatch_p99",
  "department_response_p50", "department_response_p90", "department_response_p99",
  "resolution_p50", "resolution_p90", "resolution_p99",
];

const STEPS = [0.8, 0.9, 0.95, 0.99]; // of rates where more is better
const LESS_STEPS = [0.01, 0.03, 0.06, 0.1]; // of rates where less is better
const LESS_IS_BETTER = new Set(["rework_rate", "extension_rate", "return_rate", "void_rate", "duplicate_rate"]);
const isTime = (name) => /_p\d\d$/.test(name);
const FAULTS = new Set(["overdue", "unproven", "orphans", "orphans_overdue", "illegal_events", "late_events", "negative_durations"]);
const isWorseWhenMore = (name) => FAULTS.has(name) || isTime(name);
const isRate = (name) => name.endsWith("_rate");
export const isCount = (name) => !isRate(name) && !isTime(name);

export function value(name, row) {
  if (!row) return null;
  if (isTime(name)) {
    const [span, percentile] = [name.slice(0, -4), name.slice(-3)];
    return row[`${span}_seconds`][percentile];
  }
  return row[name];
}

// What a tile is coloured by: null where the area has nothing that could be counted.
export function coloured(name, row) {
  const found = value(name, row);
  return isCount(name) && !found && !(row && row.cases) ? null : found;
}

export function shown(name, row, lang) {
  const found = value(name, row);
  if (isTime(name)) return duration(found, lang);
  return isRate(name) ? percent(found) : count(found, lang);
}

// The counts behind a rate, null where there is none.
export function parts(name, row) {
  return (row && row.parts && row.parts[name]) || null;
}

// In a tile there is room for four signs.
export function brief(name, row, lang) {
  const found = value(name, row);
  if (found === null || found === undefined) return "";
  if (isRate(name)) return found >= 1 ? "100" : percent(found).slice(0, -1);
  if (isTime(name)) return briefDuration(found, lang);
  return count(found, lang);
}

// Fixed steps where most rates are high, so that a city in good order looks so; else fifths of what there is.
function rateSteps(rates) {
  const sorted = [...rates].sort((a, b) => a - b);
  const at = (part) => sorted[Math.floor(part * (sorted.length - 1))];
  if (!sorted.length || at(0.5) >= 0.9) return STEPS;
  const steps = [0.2, 0.4, 0.6, 0.8].map((part) => Math.round(at(part) * 100) / 100);
  return new Set(steps).size === steps.length ? steps : STEPS;
}

// The colour scale of a metric over some rows: {prefix, bounds}; class number = 1 + bounds passed.
export function scale(name, rows) {
  if (LESS_IS_BETTER.has(name)) return { prefix: "h", bounds: LESS_STEPS };
  if (isRate(name)) return { prefix: "v", bounds: rateSteps(rows.map((row) => value(name, row)).filter((rate) => rate !== null)) };
  const most = Math.max(1, ...rows.map((row) => value(name, row) || 0));
  return { prefix: isWorseWhenMore(name) ? "h" : "q", bounds: [0.1, 0.25, 0.5, 0.75].map((part) => part * most) };
}

export function tone({ prefix, bounds }, found) {
  if (found === null || found === undefined) return "none";
  return prefix + (1 + bounds.filter((bound) => found >= bound).length);
}

export function legend(name, { prefix, bounds }, lang) {
  const text = (bound) => (isRate(name) ? percent(bound, 0) : isTime(name) ? duration(bound, lang) : count(Math.ceil(bound), lang));
  return [0, 1, 2, 3, 4].map((n) => ({
    cls: `${prefix}${n + 1}`,
    text: n === 0 ? `< ${text(bounds[0])}` : `≥ ${text(bounds[n - 1])}`,
  }));
}

// Tone of a figure in the table: only what needs attention.
export function attention(name, row) {
  const found = value(name, row);
  if (found === null || found === undefined) return "";
  if (name === "overdue") return found > 0 ? "warn" : "";
  if (!["response_rate", "closure_on_time_rate"].includes(name)) return "";
  return found < 0.9 ? "bad" : found < 0.95 ? "warn" : "";
}

export const CELLS = [
  ...DISTRICTS.map(([code, column, line, en]) => ({ code, column, line, en, district: true })),
  ...TOWNS.map(([code, column, line, en]) => ({ code, column, line, en, district: false })),
];
const BY_CODE = new Map(CELLS.map((cell) => [cell.code, cell]));
export const english = (code) => (BY_CODE.get(code) || {}).en;

// The nearest cell in a direction of the arrow keys.
export function neighbour(code, key) {
  const from = BY_CODE.get(code);
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
  let best = null;
  for (const cell of CELLS) {
    const along = (cell.column - from.column) * dx + (cell.line - from.line) * dy;
    const across = Math.abs((cell.column - from.column) * dy) + Math.abs((cell.line - from.line) * dx);
    if (along > 0 && (!best || along + 2 * across < best.cost)) best = { code: cell.code, cost: along + 2 * across };
  }
  return best ? best.code : code;
}
