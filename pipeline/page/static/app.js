// The page: one Alpine component. Everything shown is text (x-text) or a drawn picture; nothing becomes markup.

import * as area from "./area.js";
import { drawTimes, drawTrend, linesWithin, loadCharts } from "./charts.js";
import { describeCase, describeEvent, stateName, word } from "./event.js";
import * as format from "./format.js";
import * as place from "./place.js";
import { getJson, postJson, Stream } from "./stream.js";
import { ERRORS, TEXTS, VALUES } from "./texts.js";

const TILES = [
  "events_per_second", "closure_rate", "response_rate", "timely_response_rate", "closure_on_time_rate",
  "handling_on_time_rate", "open", "overdue", "delay_seconds",
];
const OUTCOMES = ["admitted", "rejected", "recorded", "duplicate", "quarantined"];
const KEY = "gridpipe.key";
const THEME = "gridpipe.theme";
const RELOADED = "gridpipe.reloaded";
const PAGE = new URL(import.meta.url).pathname.split("/").at(-2); // the digest that our files lie below
const CITY = "4407";
const FIGURES_MS = 10000; // they come each second; older ones are not shown as the present
const RETRY_MS = 3000;
const KEY_RETRY_MS = 60000; // a key that was refused may work again, as after a moment without its store
const OLD_MS = 30000; // behind the districts: a table beside them is red
const LEAST_REST_MS = 500; // between two askings for a table
const CATALOGUE_MS = 600000; // a wall page stays open for weeks, and catalogues change
const TREND_MS = 60000; // the large trend is drawn anew
const PATIENCE_MS = 60000; // for a test event to become queryable
const LEAST_LOOK_MS = 150; // between two looks for it, and the longest that it grows to
const MOST_LOOK_MS = 1000;
const SHOWN_IN_CHART = 14; // at most
const LINE_REM = 1.3; // of a line in it
const SHOWN_OF_REASON = 12;
const MOST_ALARMS = 1000; // as many as one answer holds
const BEHIND_WARN_SECONDS = 5;
const STANDING_MS = 10000; // what is held up for so long is said on top of the page
const LEAST_RATE_SPAN = 0.01; // of a tile's little curve

function remember(storage, name, value) {
  try {
    if (value === null) storage.removeItem(name);
    else storage.setItem(name, value);
  } catch {
    // Storage is switched off: the choice lasts as long as the page.
  }
}

function recall(storage, name) {
  try {
    return storage.getItem(name);
  } catch {
    return null;
  }
}

// What the page itself brought: topic → message, as of the stream.
function firstData() {
  return JSON.parse(document.getElementById("first-data").textContent);
}

const skews = new format.Skew();

const component = () => ({
  lang: document.documentElement.lang === "en" ? "en" : "zh",
  theme: document.documentElement.dataset.theme,
  now: format.steadyNow(),
  wasAnswered: false, // the stream was live once already, or refused
  skew: null, // the server's clock minus ours, ms; null until it is known
  connection: "connecting",
  storeWorks: true,
  ready: false,

  figures: null, // null while the stream is not live, or silent of them: what is running is not known then
  figuresAt: 0, // when they came
  figuresLate: false,
  since: {}, // where something is held up → since when
  said: { banner: "", lifeSafety: "", alarms: "" }, // to be read out, and so set only where it changes
  currentAt: null, // the tables hold what was stored until then
  city: null,
  districts: { as_of: null, rows: [] },
  rejected: { unknown: true, reasons: [], newest: [], life_safety: { reports: 0, newest: null } }, // until it is told
  modes: [], // emergency modes in force
  points: [],
  tables: {}, // by → {as_of, rows}
  asked: {}, // by → {as_of: the district table's that it is as new as, again: ms, when to ask next, busy}
  failures: {}, // by → why the newest asking for it failed, null since it came
  timers: {}, // by → until then

  tiles: TILES.map((id) => ({ id })),
  metrics: area.METRICS,
  columns: area.COLUMNS,
  cells: [], // all of them once the first figures are painted
  metric: "closure_rate",
  mapFocus: area.CELLS[0].code,
  picked: null, // the cell that was focused or tapped last
  path: [], // codes of the areas gone into: district, town, village
  byMap: false, // whether the map led there: the focus is not where the table is
  sort: null,
  dimension: "department",
  span: "response_seconds",
  allTimes: false, // or those with most cases, as many as can be read
  timesAsTable: false,
  linesInChart: SHOWN_IN_CHART, // how many that is

  catalogue: { matters: [], reasons: {}, departments: {}, channels: {}, towns: {}, districts: {}, matter_names: {} },
  matters: [],

  view: null,
  trail: [],
  shownItem: null,
  pressedBeside: false,
  turn: 0, // grows with every view and closing: an answer is for the view that asked
  busy: false,
  problem: null,
  event: null, came: [], lookedUp: [], position: [], copies: [], ruleRows: [],
  record: null, caseFacts: [], steps: [],
  found: null,
  ofReason: null,
  trendOf: "closure_rate",
  drawnAt: 0,
  query: "",

  key: recall(sessionStorage, KEY),
  typedKey: "",
  keyInfo: null,
  takesEvents: true, // whether what serves the page is a gateway too
  test: { source: "", matter: "UE-08", grid: "", point: "", title: "", description: "", result: "", stored: null },

  init() {
    document.title = this.t("title");
    this.arrive();
    for (const [topic, value] of Object.entries(firstData())) this.take(topic, value);
    this.connect();
    requestAnimationFrame(() => setTimeout(() => this.showRest()));
    this.loadCatalogue();
    setInterval(() => this.tick(), 1000);
    window.Alpine.effect(() => { this.said.banner = this.bannerText(); });
    window.Alpine.effect(() => { this.said.lifeSafety = this.lifeSafetyAlert(); });
    window.Alpine.effect(() => { this.said.alarms = this.alarmsText(); });
    new ResizeObserver(() => this.drawTimes()).observe(this.$refs.times);
    this.$watch("metric", () => { this.mark("replaceState"); this.refresh(); });
    addEventListener("popstate", () => this.returned());
    document.addEventListener("visibilitychange", () => this.refresh());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (screen) => {
      if (!recall(localStorage, THEME)) this.wear(screen.matches ? "dark" : "light");
    });
  },

  // ---- words
  t(name) {
    const pair = TEXTS[name];
    return pair ? pair[this.lang === "zh" ? 0 : 1] : name;
  },
  word(name) { return TEXTS[name] ? this.t(name) : name; },
  stateName(name) { return stateName(name, this.lang); },
  number(value) { return format.count(value, this.lang); },
  counted(value, one, many) { return this.t(value === 1 ? one : many).replace("{}", this.number(value)); },
  clock(iso) { return format.clock(iso, this.lang); },
  instant(iso) { return format.instant(iso, this.lang); },
  lately(iso) { return format.lately(iso, this.serverNow(), this.lang); },
  matterName(code) {
    const matter = this.allMatters().find((item) => item.code === code);
    if (!matter) return [code, this.catalogue.matter_names[code]].filter(Boolean).join(" ") || "—";
    return `${code} ${this.lang === "zh" ? matter.name_zh : matter.name_en}`;
  },
  // Those in force, and those that were within the days that the page shows.
  allMatters() { return [...this.matters, ...(this.catalogue.former || [])]; },
  departmentName(code) { return (this.catalogue.departments[code] || {})[this.lang] || code || "—"; },
  channelName(code) { return (this.catalogue.channels[code] || {})[this.lang] || code; },
  reasonName(code) {
    const found = this.catalogue.reasons[code];
    return found ? found[this.lang] : this.word(code);
  },
  areaName(code) {
    if (!code) return "";
    const district = code.slice(0, 6);
    const town = code.length > 6 ? code.slice(0, 9) : "";
    if (this.lang === "zh") return [this.catalogue.districts[district], this.catalogue.towns[town]].filter(Boolean).join("");
    return [area.english(town), area.english(district)].filter(Boolean).join(", ") || code;
  },
  words() {
    return {
      lang: this.lang,
      t: (name) => this.t(name),
      names: { matter: (c) => this.matterName(c), department: (c) => this.departmentName(c), channel: (c) => this.channelName(c), reason: (c) => this.reasonName(c), area: (c) => this.areaName(c) },
    };
  },

  // ---- chrome
  hushed: false, // Esc hides the formula that is shown; the next tile shows its own again
  hush(hushed) { this.hushed = hushed; },
  switchLanguage() {
    this.lang = this.lang === "zh" ? "en" : "zh";
    document.documentElement.lang = this.lang === "zh" ? "zh-CN" : "en";
    document.title = this.t("title");
    remember(localStorage, "gridpipe.lang", this.lang);
    this.redescribe();
    this.drawTimes();
    if (this.view === "trend") this.drawTrend();
  },
  switchTheme() {
    this.wear(this.theme === "dark" ? "light" : "dark");
    remember(localStorage, THEME, this.theme);
  },
  wear(theme) {
    this.theme = theme;
    document.documentElement.dataset.theme = theme;
    this.drawTimes();
    if (this.view === "trend") this.drawTrend();
  },
  tick() {
    this.now = format.steadyNow();
    if (this.figures && this.now - this.figuresAt > FIGURES_MS) {
      this.figures = null; // they stood for the present
      this.figuresLate = true;
    }
    this.watchTroubles();
    // its right edge is the present, whether or not something new comes
    if (this.view === "trend" && this.now - this.drawnAt > TREND_MS) this.drawTrend();
  },
  serverMs() { return this.now + (this.skew || 0); },
  serverNow() { return new Date(this.serverMs()).toISOString(); },
  nowClock() { return format.clock(this.serverNow(), this.lang); },
  nowDate() { return format.date(this.serverNow(), this.lang); },
  behindSeconds() {
    // before the store was asked for us: of when the figures are that the page brought along
    const at = this.currentAt || (this.city && this.city.as_of);
    if (this.skew === null || !at) return null;
    return Math.max(0, (this.now + this.skew - Date.parse(at)) / 1000);
  },
  behindText() {
    const seconds = this.behindSeconds();
    return seconds === null ? "" : `${this.t("behind")} ${seconds.toFixed(1)} ${this.t("seconds")}`;
  },
  behindClass() { return this.behindSeconds() > BEHIND_WARN_SECONDS ? "bad" : "quiet"; },
  connectionText() {
    if (this.connection === "live") return this.t("live");
    if (this.connection === "connecting") return this.t("connecting");
    return this.t(this.connection === "key" ? "keyNeeded" : "lost");
  },
  bannerText() {
    if (this.connection === "lost") return this.t("lost");
    if (this.connection === "key") return this.t("keyNeeded");
    const { figures } = this;
    const held = this.troubles().filter(({ at }) => this.stands(at)).map(({ at, held }) => ({ at, said: held }));
    return [
      [figures && figures.log_answers === false, "logDown"],
      [!this.storeWorks, "storeDown"],
      [this.figuresLate, "figuresLate"],
      [this.workerSilent(), this.stands("worker") ? "workerDown" : "workerSilent"],
    ].filter(([wrong]) => wrong).map(([, name]) => this.t(name)).concat(this.missingText() || [], this.placed(held)).join(" · ");
  },
  // One that was here. A single late answer is no standstill yet.
  workerSilent() {
    const { figures } = this;
    return Boolean(this.ready && figures && !figures.worker && figures.expects_worker && !this.missing().length);
  },

  // ---- what holds things up
  // said: all that an arrow tells; held: without what does not answer, of which the banner speaks at once.
  troubles() {
    const found = this.flowArrows().filter(({ alarm }) => alarm).map(({ to, alarm, held }) => ({ at: to, said: alarm, held }));
    // without figures or the store it follows from that
    if (!this.figures || !this.storeWorks || !(this.behindSeconds() > BEHIND_WARN_SECONDS)) return found;
    const late = this.t("tablesLate").replace("{}", BEHIND_WARN_SECONDS);
    return [...found, { at: "tables", said: late, held: late }];
  },
  watchTroubles() {
    const at = this.troubles().filter(({ held }) => held).map((trouble) => trouble.at).concat(this.workerSilent() ? "worker" : []);
    this.since = Object.fromEntries(at.map((place) => [place, this.since[place] || this.now]));
  },
  stands(at) { return this.now - this.since[at] >= STANDING_MS; },
  // The same said of two places is said once.
  placed(troubles) {
    const places = new Map();
    for (const { at, said } of troubles) places.set(said, [...(places.get(said) || []), ...(at === "tables" ? [] : [this.t(`n_${at}`)])]);
    return [...places].map(([said, at]) => [format.listed(at, this.lang), said].filter(Boolean).join(" "));
  },
  alarmsText() { return this.placed(this.troubles()).join(this.lang === "zh" ? "；" : "; "); },

  // ---- the stream
  connect() {
    clearTimeout(this.timers.key);
    if (this.stream) this.stream.stop();
    this.stream = new Stream("/v1/live", {
      key: this.key,
      onMessage: (topic, value) => this.take(topic, value),
      onState: (state) => this.connected(state),
    });
  },
  // What the first figures need not wait for: the map's many tiles, and the library of the charts.
  showRest() {
    document.querySelectorAll(".first").forEach((tile) => tile.remove()); // ours stand behind them
    this.cells = area.CELLS;
    this.showCharts();
  },
  showCharts() {
    loadCharts().then(() => {
      this.drawTimes();
      if (this.view === "trend") this.drawTrend();
    }, () => setTimeout(() => this.showCharts(), RETRY_MS));
  },
  connected(state) {
    const before = this.connection;
    // asked again by itself: the page says that a key is needed until one is taken
    if (state === "connecting" && before === "key") return;
    this.connection = state;
    this.figuresLate = false;
    if (state !== "live") this.figures = null;
    else if (this.wasAnswered) this.loadCatalogue(); // the server may have begun anew, with other names
    if (state === "live" && this.key && !this.keyInfo) this.checkKey().catch(() => {}); // with the next stream then
    this.wasAnswered ||= state === "live" || state === "key";
    if (state !== "key") return;
    clearTimeout(this.timers.key);
    this.timers.key = setTimeout(() => this.connect(), KEY_RETRY_MS);
    if (before !== "key" && !this.view) this.openKey();
  },
  // Reading needs a key, or another one. Whether it still does is asked by the stream, after a while.
  keyRefused(error, key) {
    if ((error.status !== 401 && error.status !== 403) || key !== this.key) return false;
    this.stream.stop();
    this.connected("key");
    return true;
  },
  take(topic, value) {
    this.keepFocus();
    if (topic === "figures") {
      this.figures = value;
      this.takesEvents = value.takes_events !== false;
      this.figuresLate = false;
      this.now = format.steadyNow();
      this.figuresAt = this.now;
      this.skew = skews.add(Date.parse(value.at), this.now);
      this.renew(value.page);
    } else if (topic === "city") {
      this.city = value;
      if (!this.ready) this.$nextTick(() => performance.mark("gridpipe-figures"));
      this.ready = true;
    } else if (topic === "district") {
      this.districts = value;
      this.refresh();
    } else if (topic === "rejected") this.rejected = value;
    else if (topic === "modes") this.modes = value.modes;
    else if (topic === "current") this.currentAt = value.at;
    else if (topic === "trend") {
      this.points = value.points;
      if (this.view === "trend") this.drawTrend();
    } else if (topic === "store") this.storeWorks = value.available;
  },
  // The server was upgraded since this page was loaded: a wall stays open for weeks. Not under somebody's hands, and once
  // for each page that is served: behind a proxy two versions may answer by turns.
  renew(page) {
    if (!page || page === PAGE || this.view || document.activeElement.tagName === "INPUT") return;
    const before = (recall(sessionStorage, RELOADED) || "").split(" ");
    if (before.includes(page)) return;
    const all = [...before, page].join(" ");
    remember(sessionStorage, RELOADED, all);
    if (recall(sessionStorage, RELOADED) === all) location.reload(); // else it would be for ever
  },
  // A row that goes elsewhere in its list is taken out and put in again, and the focus is lost with that.
  keepFocus() {
    const held = document.activeElement;
    if (!held || held === document.body) return;
    this.$nextTick(() => {
      if (document.activeElement === document.body && held.isConnected) held.focus({ preventScroll: true });
    });
  },
  // One at a time, and the next one is always due.
  async loadCatalogue() {
    const { key } = this;
    clearTimeout(this.timers.catalogue);
    let rest = CATALOGUE_MS;
    try {
      this.catalogue = await getJson("/v1/live/matters", key);
      this.matters = this.catalogue.matters;
      this.drawTimes();
    } catch (error) {
      if (this.keyRefused(error, key)) return;
      rest = RETRY_MS;
    }
    clearTimeout(this.timers.catalogue);
    this.timers.catalogue = setTimeout(() => this.loadCatalogue(), rest);
  },

  // ---- tables beside the stream
  refresh() {
    if (document.hidden || this.connection === "key") return;
    this.want("town", "");
    this.want(this.dimension, "");
    if (this.path.length > 1) this.want(this.level(), this.path[this.path.length - 1]);
  },
  // A table that is not older than the districts', now or as soon as the server has one.
  async want(by, parent) {
    const name = `${by}:${parent}`;
    const last = this.asked[name] || { again: 0 };
    if (last.busy || last.as_of === this.districts.as_of) return;
    const rest = last.again - format.steadyNow();
    if (rest > 0) {
      clearTimeout(this.timers[name]);
      this.timers[name] = setTimeout(() => this.refresh(), rest);
      return;
    }
    const { key, districts: { as_of } } = this;
    const asked = { busy: true };
    this.asked[name] = asked;
    try {
      const suffix = parent ? `?parent=${encodeURIComponent(parent)}` : "";
      const table = await getJson(`/v1/live/tables/${by}${suffix}`, key);
      this.keepFocus();
      this.tables = { ...this.tables, [name]: table }; // after the wait: others may have come meanwhile
      this.failures = { ...this.failures, [name]: null };
      if (by === this.dimension) this.drawTimes();
      // an older one was held for others: it is asked for again
      if (!as_of || table.as_of >= as_of) asked.as_of = as_of;
      asked.again = format.steadyNow() + Math.max(LEAST_REST_MS, table.again_in_seconds * 1000);
    } catch (error) {
      this.failures = { ...this.failures, [name]: error };
      asked.again = this.keyRefused(error, key) ? 0 : format.steadyNow() + RETRY_MS;
    }
    asked.busy = false;
    this.refresh();
  },

  // Until when a table beside the districts holds what was stored; what failed, once that is long ago.
  isOld(name) {
    const table = this.tables[name];
    return Boolean(table && this.districts.as_of && Date.parse(this.districts.as_of) - Date.parse(table.as_of) > OLD_MS);
  },
  instantOf(name) { return (this.tables[name] && this.tables[name].as_of) || ""; },
  ageOf(name) {
    const { tables: { [name]: table }, failures: { [name]: failure } } = this;
    if (!table) return failure ? this.againText(failure) : this.t("loading");
    const asOf = `${this.t("asOf")} ${this.clock(table.as_of)}`;
    return failure && this.isOld(name) ? `${asOf} · ${this.againText(failure)}` : asOf;
  },
  ageClass(name) { return this.isOld(name) || (!this.tables[name] && this.failures[name]) ? "bad" : "quiet"; },
  againText(failure) { return `${this.errorText(failure).replace(/，请稍后再试$|: try again in a moment$/, "")} · ${this.t("again")}`; },
  timesName() { return `${this.dimension}:`; },

  // ---- tiles
  cityRow() { return this.city && this.city.rows[0]; },
  delay() { return this.figures && this.figures.delay_seconds; },
  tileValue(id) {
    if (id === "events_per_second") return format.rate(this.figures && this.figures.events_per_second, this.lang);
    if (id === "delay_seconds") {
      const delay = this.delay();
      return delay ? format.delay(delay.p99) : "—";
    }
    const row = this.cityRow();
    if (!row) return "—";
    return id.endsWith("_rate") ? format.percent(row[id], 2) : format.count(row[id], this.lang);
  },
  tileCounts(id) {
    if (id === "events_per_second") {
      if (!this.figures) return "—";
      const { events_per_second: rate, flow, gateway, stored, totals, worker } = this.figures;
      // goes on where the worker stands still
      const intake = `${this.t("intake")} ${gateway ? this.perSecond(flow.gateway.accepted_per_second) : "—"}`;
      if (!worker) return intake;
      const out = flow.outcomes_per_second; // their sum is the figure
      const all = (told) => OUTCOMES.map((name) => `${this.t(name)} ${told(name)}`).join(" · ");
      return [
        stored ? `${this.number(stored.events)} ÷ ${stored.seconds.toFixed(1)} ${this.t("seconds")} = ${this.perSecond(rate)}` : "—",
        intake,
        all((name) => this.perSecond(out[name])),
        `${this.t("sinceStart")} ${all((name) => this.number(totals[name] || 0))}`,
      ].join(this.lang === "zh" ? "；" : "; ");
    }
    if (id === "delay_seconds") {
      const delay = this.delay();
      return delay ? `p50 ${format.delay(delay.p50)} · p99 ${format.delay(delay.p99)} · n = ${format.count(delay.count, this.lang)}` : "—";
    }
    const row = this.cityRow();
    if (!row) return "—";
    if (id === "open") return `${this.number(row.cases)} − ${this.number(row.closed)} = ${this.number(row.open)}`;
    if (id === "overdue") return `${this.number(row.overdue)} / ${this.t("open")} ${this.number(row.open)}`;
    const [part, whole] = row.parts[id];
    return `${this.number(part)} ÷ ${this.number(whole)} = ${format.percent(row[id], 2)}`;
  },
  tileFoot(id) {
    if (id === "events_per_second") {
      const flow = this.figures && this.figures.worker && this.figures.flow;
      return flow ? `${this.t("queue")} ${this.shownQueue(flow.topic)}` : "";
    }
    if (id === "delay_seconds") {
      const delay = this.delay();
      return delay ? `p50 ${format.delay(delay.p50)}` : "";
    }
    const row = this.cityRow();
    if (!row) return "";
    if (id === "open") return `${this.t("cases")} ${this.number(row.cases)}`;
    if (id === "overdue") return row.open ? this.t("ofOpen").replace("{}", format.percent(row.overdue / row.open)) : "";
    return row.parts[id].map((n) => this.number(n)).join(" / ");
  },
  tileClass(id) {
    if (id === "overdue") return this.cityRow() && this.cityRow().overdue > 0 ? "warn" : "";
    if (id === "delay_seconds") {
      const delay = this.delay();
      return delay && (delay.p99 === null || delay.p99 > BEHIND_WARN_SECONDS) ? "bad" : "";
    }
    return "";
  },
  // The last hour until now, and what is known last at the time that it is of: lines with gaps between them.
  series(id) {
    // where the store answered, the open cases are known
    const known = (point) => !["events_per_second", "delay_seconds"].includes(id) && point.open !== null;
    const points = this.points.map((point) => ({ at: point.at, value: point[id], known: known(point) }));
    const current = this.current(id);
    const last = points[points.length - 1];
    if (current && current.value !== null && !(last && last.at > current.at)) points.push(current);
    const since = this.serverMs() - format.HOUR_MS;
    return format.runs(points.filter((point) => Date.parse(point.at) >= since));
  },
  current(id) {
    const { figures, city } = this;
    if (id === "events_per_second") return figures && { at: figures.at, value: figures.events_per_second };
    if (id === "delay_seconds") {
      const delay = this.delay();
      return delay && { at: figures.at, value: delay.p99 === null ? format.LONGEST_DELAY : delay.p99 };
    }
    return city && { at: city.as_of, value: city.rows[0][id] };
  },
  spark(id) {
    const lines = this.series(id);
    const values = lines.flat().map((point) => point.value);
    if (values.length < 2) return [];
    let [low, high] = [Math.min(...values), Math.max(...values)];
    if (!id.endsWith("_rate")) low = Math.min(0, low);
    // a hundredth of a point is no cliff
    const least = id.endsWith("_rate") ? LEAST_RATE_SPAN : 1e-9;
    if (high - low < least) [low, high] = [(low + high - least) / 2, (low + high + least) / 2];
    // the width is always the hour: a line that begins late has no figures before
    const now = this.serverMs();
    const place = (at) => Math.min(100, 100 - (now - Date.parse(at)) / format.HOUR_MS * 100);
    return lines.map((line) => line.map((point) => [
      place(point.at).toFixed(1), (26 - (point.value - low) / (high - low) * 24).toFixed(1),
    ].join(",")));
  },
  sparkLine(id) {
    // a point by itself has no length: a dash to its left, where the edge does not cut it
    return this.spark(id).map((line) => `M${line.join("L")}${line.length > 1 ? "" : "h-.6"}`).join("");
  },
  sparkArea(id) {
    const x = (point) => point.split(",")[0];
    return this.spark(id).map((line) => `M${x(line[0])},28L${line.join("L")}L${x(line[line.length - 1])},28Z`).join("");
  },

  // ---- flow
  // Processes that the api watches and that do not answer. One that never did may be of any role.
  missing(role) {
    const all = (this.figures && this.figures.missing) || [];
    return role ? all.filter(({ roles }) => roles.includes(role) || (!roles.length && !this.figures[role])) : all;
  },
  missingText() {
    const told = this.missing().map(({ address, why }) => `${address} ${this.t(`away_${why}`)}`);
    return told.length ? `${this.t("missing")}${format.listed(told, this.lang)}` : "";
  },
  missingAt(role) { return this.missing(role).map(({ address, why }) => `${this.t(`away_${why}`)} ${address}`).join(" · "); },
  // Of whom nothing can be known here, and what to set.
  flowNote() {
    const roles = (this.figures && this.figures.unwatched) || [];
    return roles.length ? this.t("unwatched").replace("{}", roles.map((role) => this.t(`of_${role}`)).join(this.lang === "zh" ? "和" : " and ")) : "";
  },
  flowArrows() {
    const flow = this.figures && this.figures.flow;
    if (!flow) return ["gateway", "topic", "decode", "deduplicate", "admit", "enrich", "store"].map((to) => ({ to, rate: "—", facts: [], look: "unknown", alarm: "" }));
    const here = this.figures.worker;
    const out = flow.outcomes_per_second;
    const sum = (...values) => (values.includes(null) ? null : values.reduce((total, value) => total + value, 0)); // unknown after a start
    const all = sum(...Object.values(out));
    const less = (whole, ...parts) => (whole === null ? null : whole - sum(...parts));
    const per = (value) => this.perSecond(value);
    const fact = (name, value, bad = false) => ({ name: this.t(name), value, bad });
    const ms = (seconds) => (seconds === null ? "—" : `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`);
    const stage = (name) => fact("perBlock", ms(flow.stages[name]));
    const down = this.storeWorks === false;
    const away = this.figures.log_answers === false; // then nothing is counted: every rate is a quiet zero
    const unwritten = flow.gateway.not_written_per_second > 0;
    const silent = this.missingAt("worker") || (!here && this.figures.expects_worker); // the worker ran here and answers no more
    const still = flow.topic.stuck_partitions;
    const stuckAt = still.length ? `${this.t("stuckPartitions")} ${still.join(", ")}` : "";
    const slow = (to) => flow.slowest === to && this.t("slowest"); // what holds the others up
    const said = (told, name) => (told === true ? this.t(name) : told);
    const alarm = (stuck, gone) => [said(stuck, "stuck"), (gone !== true || !stuck) && said(gone, "silent")].filter(Boolean).join(" · ");
    const arrow = (to, rate, facts, stuck = false, gone = false) => {
      const known = to === "gateway" || to === "topic" ? this.figures.gateway : here && flow.topic.known; // by whom it is counted
      return {
        to, rate: known ? per(rate) : "—", facts: known ? facts : facts.map(({ name }) => ({ name, value: "—", bad: false })),
        look: stuck || gone ? "stuck" : known ? "" : "unknown", alarm: alarm(stuck, gone), held: gone === true ? "" : alarm(stuck, false),
      };
    };
    return [
      arrow("gateway", sum(flow.gateway.accepted_per_second, flow.gateway.refused_per_second, flow.gateway.not_written_per_second), [
        fact("queue", format.bytes(flow.gateway.in_flight_bytes)), fact("refused", per(flow.gateway.refused_per_second), flow.gateway.refused_per_second > 0),
      ], flow.gateway.stuck, this.missingAt("gateway")),
      arrow("topic", flow.gateway.accepted_per_second, [fact("notWritten", per(flow.gateway.not_written_per_second), unwritten)],
        away ? false : unwritten ? this.t("notWritten") : flow.gateway.stuck, away),
      arrow("decode", all, [fact("queue", this.shownQueue(flow.topic)), fact("oldest", flow.topic.known ? `${flow.topic.lag_seconds.toFixed(1)} s` : "—", flow.topic.lag_seconds > BEHIND_WARN_SECONDS), stage("decode")], stuckAt || slow("decode"), silent),
      arrow("deduplicate", less(all, out.quarantined), [fact("quarantined", per(out.quarantined), out.quarantined > 0), stage("deduplicate")], slow("deduplicate")),
      arrow("admit", less(all, out.quarantined, out.duplicate), [fact("duplicates", per(out.duplicate)), stage("admit")], slow("admit")),
      arrow("enrich", sum(out.admitted, out.recorded, out.rejected), [fact("rejected", per(out.rejected)), stage("enrich")], slow("enrich")),
      arrow("store", sum(out.admitted, out.recorded, out.rejected), [
        fact("queue", format.bytes(flow.store.waiting_bytes)),
        fact("blocked", `${flow.store.blocked_seconds.toFixed(1)} s`, flow.store.blocked_seconds > BEHIND_WARN_SECONDS),
        fact("retries", per(flow.store.retries_per_second), flow.store.retries_per_second > 0), fact("perInsert", ms(flow.store.seconds_per_insert)),
      ], stuckAt || flow.store.stuck || slow("store"), down || silent === true),
    ];
  },

  perSecond(value) { return value === null ? "—" : `${format.rate(value, this.lang)}${this.t("perSecond")}`; },
  // In blocks of up to thousands of events; a worker that begins has no partitions yet.
  shownQueue(topic) { return topic.known ? this.counted(topic.lag_records, "oneBlock", "blocks") : "—"; },

  // ---- map
  mapRows(district) { return district ? this.districts.rows : (this.tables["town:"] || { rows: [] }).rows; },
  rowOf(cell) { return this.mapRows(cell.district).find((row) => row.key === cell.code); },
  scale() { return area.scale(this.metric, this.mapRows(false)); },
  cellPlace(cell) { return { gridColumn: `${cell.column} / span ${cell.district ? 2 : 1}`, gridRow: String(cell.line) }; },
  cellClass(cell) {
    const row = this.rowOf(cell);
    // a district is the sum of its towns: how many is compared among districts, how good and how fast with the towns
    const scale = cell.district && this.countsOnMap() ? area.scale(this.metric, this.districts.rows) : this.scale();
    const dim = this.path.length && !cell.code.startsWith(this.path[0]) ? " dim" : "";
    return (cell.district ? "district " : "") + area.tone(scale, area.coloured(this.metric, row)) + dim;
  },
  cellName(cell) {
    const name = cell.district ? this.catalogue.districts[cell.code] : this.catalogue.towns[cell.code];
    if (this.lang === "en") return cell.en;
    return name ? name.replace(/(街道|镇|区|市)$/, "") : "";
  },
  cellValue(cell) { return area.brief(this.metric, this.rowOf(cell), this.lang); },
  cellLabel(cell) {
    const row = this.rowOf(cell);
    const parts = area.parts(this.metric, row);
    const counts = parts ? parts.map((n) => this.number(n)).join(" / ") : "";
    return `${this.areaName(cell.code)} ${this.t(this.metric)} ${area.shown(this.metric, row, this.lang)}${
      counts && (this.lang === "zh" ? `（${counts}）` : ` (${counts})`)}`;
  },
  countsOnMap() { return area.isCount(this.metric); },
  mapNote() { return [this.t("mapNote"), ...(this.countsOnMap() ? [this.t("legendOfTowns")] : [])].join(this.lang === "zh" ? "；" : "; "); },
  legend() { return area.legend(this.metric, this.scale(), this.lang); },
  // A title needs a mouse, and on a phone the tiles have room for names alone.
  pickedText() { return this.picked ? this.cellLabel(area.CELLS.find(({ code }) => code === this.picked)) : this.t("mapPick"); },
  focusCell(code) {
    this.mapFocus = code;
    this.picked = code;
  },
  moveOnMap(event) {
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    this.mapFocus = area.neighbour(this.mapFocus, event.key);
    event.currentTarget.querySelector(`[data-code="${this.mapFocus}"]`).focus();
  },
  goTo(code) {
    this.focusCell(code); // a tap need not focus
    this.path = code.length === 6 ? [code] : [code.slice(0, 6), code];
    this.byMap = true;
    this.enter();
  },

  // ---- areas
  level() { return area.LEVELS[this.path.length]; },
  levelText() { return this.t(`level_${this.level()}`); },
  areaTable() { return this.path.length ? this.tables[this.areaTableName()] : this.districts; },
  areaTableName() { return this.path.length > 1 ? `${this.level()}:${this.path[this.path.length - 1]}` : "town:"; },
  areaRows() {
    const table = this.areaTable();
    let rows = table ? table.rows : [];
    if (this.path.length === 1) rows = rows.filter((row) => row.key.startsWith(this.path[0]));
    if (this.sort) {
      const { column, down } = this.sort;
      const at = (row) => { const v = area.value(column, row); return v === null ? -1 : v; };
      rows = [...rows].sort((a, b) => (at(a) - at(b)) * (down ? -1 : 1));
    }
    return this.path.length || !this.cityRow() ? rows : [...rows, this.cityRow()];
  },
  areaNote() {
    if (!this.areaTable()) return this.ageOf(this.areaTableName());
    return this.areaRows().length ? "" : this.t("noRows");
  },
  hasFewCases() { return this.areaRows().some((row) => row.suppressed); },
  areaInstant() {
    const table = this.areaTable();
    return (table && table.as_of) || "";
  },
  areaAsOf() {
    if (!this.areaInstant()) return ""; // what is known then stands below
    return this.path.length ? this.ageOf(this.areaTableName()) : `${this.t("asOf")} ${this.clock(this.areaInstant())}`;
  },
  areaAgeClass() { return this.path.length ? this.ageClass(this.areaTableName()) : "quiet"; },
  rowName(row) {
    if (row.key === CITY) return this.t("city");
    if (this.lang === "en" && row.key.length <= 9) return area.english(row.key) || row.key;
    return row.name_zh || row.key;
  },
  canDrill(row) { return row.key !== CITY && this.path.length < 3; },
  drill(row) {
    this.path = [...this.path, row.key];
    this.enter();
    this.focusAreas();
  },
  climb(depth) {
    this.path = this.path.slice(0, depth);
    this.enter();
    this.focusAreas();
  },
  // The button that was pressed is gone with its row: go on from the title, which says where we are.
  focusAreas() {
    this.byMap = false;
    const title = this.$refs.areasTitle; // found from the button, while that is there
    this.$nextTick(() => title.focus({ preventScroll: true }));
  },
  areasLabel() { return [this.levelText(), ...(this.path.length ? [this.crumbs().map((step) => step.name).join(" ")] : [])].join(" · "); },
  ledTo() { return this.byMap ? this.areasLabel() : ""; },
  enter() {
    this.sort = null;
    this.mark("pushState");
    if (this.path.length > 1) this.want(this.level(), this.path[this.path.length - 1]);
    else if (this.path.length === 1) this.want("town", "");
  },
  crumbs() {
    const names = [this.t("city"), ...this.path.map((code) => this.stepName(code))];
    return names.map((name, depth) => ({ key: `${depth}${name}`, name, depth, last: depth === names.length - 1 }));
  },
  stepName(code) {
    if (code.length === 6) return this.lang === "zh" ? this.catalogue.districts[code] || code : area.english(code);
    if (code.length === 9) return this.lang === "zh" ? this.catalogue.towns[code] || code : area.english(code);
    const rows = (this.tables[`village:${code.slice(0, 9)}`] || { rows: [] }).rows;
    const row = rows.find((item) => item.key === code);
    return (row && row.name_zh) || code;
  },
  // A long word of English may be broken where the table has no room for it.
  columnName(column) { return this.t(column).replace(/Satis(?=faction)|Admis(?=sion)|Resolu(?=tion)|Over(?=due)/, "$&\u00AD"); },
  shown(column, row) { return area.shown(column, row, this.lang); },
  cellTone(column, row) { return area.attention(column, row); },
  sortBy(column) {
    const down = !(this.sort && this.sort.column === column && this.sort.down);
    this.sort = { column, down };
  },
  sortState(column) {
    if (!this.sort || this.sort.column !== column) return "none";
    return this.sort.down ? "descending" : "ascending";
  },

  // ---- the address
  mark(how) {
    const hash = place.write(this);
    if (place.write(place.read(location.hash) || place.read("")) !== hash) history[how](null, "", hash || location.pathname + location.search);
  },
  arrive() { Object.assign(this, place.read(location.hash)); },
  // Back, Forward, or an address that somebody typed.
  returned() {
    const before = this.path.join();
    this.arrive();
    this.refresh();
    this.drawTimes();
    if (this.path.join() === before) return;
    this.sort = null;
    if (!this.view) this.focusAreas();
  },

  // ---- percentiles
  setDimension(name) {
    this.dimension = name;
    this.mark("replaceState");
    this.want(name, "");
    this.drawTimes();
  },
  setSpan(name) {
    this.span = name;
    this.mark("replaceState");
    this.drawTimes();
  },
  limitsOf(key) {
    const [field, unit] = this.span === "response_seconds" ? ["response_minutes", 60] : ["resolution_hours", 3600];
    // cases of a matter that was withdrawn since are still among those of the 30 days
    const mine = this.allMatters().filter((matter) => (this.dimension === "matter" ? matter.code : matter.lead_department) === key);
    const limits = mine.map((matter) => matter[field] * unit).filter((value) => value > 0);
    return limits.length ? [Math.min(...limits), Math.max(...limits)] : null;
  },
  timesRows() {
    const table = this.tables[this.timesName()];
    if (!table) return [];
    return [...table.rows].filter((row) => row[this.span].p50 !== null).sort((a, b) => b.cases - a.cases).slice(0, this.allTimes ? Infinity : this.linesInChart)
      .map((row) => ({
        key: row.key,
        n: row[this.timesCount()],
        name: this.dimension === "matter" ? this.matterName(row.key) : this.departmentName(row.key),
        values: row[this.span],
        limits: this.limitsOf(row.key),
      }));
  },
  showAllTimes() {
    this.allTimes = !this.allTimes;
    this.$nextTick(() => this.drawTimes());
  },
  // In the place of the picture, for who cannot see it or hover over it.
  showTimesAsTable() {
    this.timesAsTable = !this.timesAsTable;
    this.$nextTick(() => this.drawTimes());
  },
  // Where it may be higher than its box, the box is a stop of the keyboard's.
  timesStop() { return this.timesAsTable || this.allTimes ? 0 : false; },
  timesCaption() { return [this.t("times"), this.t(`by_${this.dimension}`), this.t(this.span)].join(" · "); },
  timesCount() { return this.span === "response_seconds" ? "responded" : "closed"; }, // cases that have such a time
  timeShown(value) { return format.duration(value, this.lang); },
  limitShown(row) { return row.limits ? [...new Set(row.limits)].map((value) => this.timeShown(value)).join("–") : "—"; },
  isOver(row, percentile) { return Boolean(row.limits) && row.values[percentile] > row.limits[1]; },
  // As high as its lines need; what does not fit is scrolled to.
  timesSize() { return this.allTimes ? { minHeight: `${this.timesRows().length * LINE_REM + 4}rem` } : {}; },
  drawTimes() {
    if (!window.echarts || !this.$refs.times || !this.$refs.times.clientWidth) return;
    this.linesInChart = Math.min(SHOWN_IN_CHART, linesWithin(this.$refs.times.parentElement.clientHeight));
    drawTimes(this.$refs.times, this.timesRows(), {
      names: { limit: this.limitName() },
      format: (value) => format.duration(value, this.lang),
    });
  },
  // An emergency mode shortens the limit of the response alone.
  limitName() {
    const name = this.dimension === "matter" ? "limit" : "limits";
    return this.t(this.span === "response_seconds" ? `${name}Routine` : name);
  },
  modesText() {
    if (!this.modes.length) return "";
    const told = this.modes.map(({ mode, level, area_code }) =>
      `${word(VALUES[mode], this.lang) || mode} ${level} · ${area_code === CITY ? this.t("city") : this.areaName(area_code) || area_code}`);
    return `${this.t("modes")}${format.listed(told, this.lang)}`;
  },
  timesNote() {
    if (this.tables[this.timesName()] && !this.timesRows().length) return this.t("noTimes");
    return "";
  },
  // The picture in short: every figure of it is in the table.
  timesSummary() {
    const rows = this.timesRows();
    const over = rows.filter((row) => this.isOver(row, "p90")).length;
    return [this.timesCaption(), this.counted(rows.length, "oneLine", "lines"),
      ...(rows.some(({ limits }) => limits) ? [this.t("timesOver").replace("{}", this.number(over))] : [])].join("; ");
  },

  // ---- rejections
  noReasons() { return this.rejected.unknown ? "—" : this.t("none"); },
  reasonWidth(row) { return `${Math.max(2, row.reports / Math.max(...this.rejected.reasons.map((item) => item.reports)) * 100)}%`; },

  lifeSafetyText(row) { return `${this.t("lifeSafety")} ${row.life_safety}`; },
  lifeSafetyAlert() {
    const { reports } = this.rejected.life_safety;
    return reports ? `⚠ ${this.t("lifeSafetyAlert")}${this.number(reports)}` : "";
  },
  // All that the alarm counts: somebody must look at each of them.
  openLifeSafety() {
    const since = new Date(this.serverMs() - format.HOUR_MS).toISOString();
    return this.openList({ lifeSafety: true }, `life_safety=true&from=${since}&limit=${MOST_ALARMS}`);
  },

  // ---- dialog
  show(view, item = null) {
    if (!this.$refs.dialog.open) this.trail = []; // it was closed, and is told of it only later
    else if (this.view && ["event", "case", "found", "reason", "test"].includes(this.view)) this.trail.push({ view: this.view, item: this.shownItem });
    this.put(view, item);
    if (!this.$refs.dialog.open) this.$refs.dialog.showModal();
  },
  put(view, item) {
    // the link that was pressed goes away with its view
    const title = this.$refs.dialogTitle;
    if (this.$refs.dialog.open) this.$nextTick(() => title.focus());
    this.view = view;
    this.shownItem = item;
    this.leave();
    this.$refs.dialog.scrollTop = 0;
  },
  back() {
    const { view, item } = this.trail.pop();
    this.put(view, item);
    if (view === "event") this.event = item;
    if (view === "case") this.record = item;
    if (view === "found") this.found = item;
    if (view === "reason") this.ofReason = item;
    this.redescribe();
  },
  closeDialog() { this.$refs.dialog.close(); },
  // A click beside the sheet closes it: pressed there and released there. A selection that is drawn beyond the edge
  // is none, nor is a click between the sheet's contents.
  pressed(event) { this.pressedBeside = this.isBeside(event); },
  clicked(event) { if (this.pressedBeside && this.isBeside(event)) this.closeDialog(); },
  isBeside({ clientX: x, clientY: y }) {
    const { left, right, top, bottom } = this.$refs.dialog.getBoundingClientRect();
    return x < left || x > right || y < top || y > bottom;
  },
  closed() {
    if (this.$refs.dialog.open) return; // and opened again since: browsers tell of the closing afterwards
    this.view = null;
    this.trail = [];
    this.leave();
  },
  // Nobody waits any more for what was asked until now.
  leave() {
    this.turn += 1;
    this.busy = false;
    this.problem = null;
  },
  dialogTitle() {
    if (this.view === "trend") return this.trendTitle();
    if (this.view === "event") return this.event ? `${this.t("explain")} ${this.event.source}/${this.event.event_id}` : this.t("explain");
    if (this.view === "case") return this.record ? `${this.t("case")} ${this.record.case_id}` : this.t("case");
    if (this.view === "found") return `${this.t("results")} ${this.found ? this.found.q : ""}`;
    if (this.view === "reason") return `${this.t("rejections")} · ${this.listName()}`;
    if (this.view === "key") return this.t("keyTitle");
    return this.view === "test" ? this.t("testEvent") : "";
  },
  problemText() { return this.problem ? this.errorText(this.problem) : ""; },
  // By the server's code, else by its status; without an answer there is neither.
  errorText({ status, problem }) {
    const pair = ERRORS[problem && problem.code] || ERRORS[status];
    if (pair) return word(pair, this.lang);
    return status ? `${this.t("failed")} · HTTP ${status}` : this.t("unreachable");
  },
  // Null where it failed, which the sheet says; undefined where the view that asked is gone.
  async ask(path) {
    const { turn } = this;
    this.busy = true;
    this.problem = null;
    const { answer, error } = await getJson(path, this.key).then((answer) => ({ answer }), (error) => ({ error }));
    if (turn !== this.turn) return undefined;
    this.busy = false;
    if (error) this.problem = error;
    return error ? null : answer;
  },
  redescribe() {
    if (this.event) {
      const { came, lookedUp, position, copies, rules } = describeEvent(this.event, this.words());
      Object.assign(this, { came, lookedUp, position, copies, ruleRows: rules });
    }
    if (this.record) {
      const { facts, steps } = describeCase(this.record, this.words());
      Object.assign(this, { caseFacts: facts, steps });
    }
  },
  async openEvent(source, eventId) {
    this.show("event");
    this.event = null;
    const event = await this.ask(`/v1/events/${encodeURIComponent(source)}/${encodeURIComponent(eventId)}`);
    if (event === undefined) return;
    this.event = this.shownItem = event;
    this.redescribe();
  },
  async openCase(caseId) {
    this.show("case");
    this.record = null;
    const record = await this.ask(`/v1/cases/${encodeURIComponent(caseId)}`);
    if (record === undefined) return;
    this.record = this.shownItem = record;
    this.redescribe();
  },
  async find() {
    const text = this.query.trim();
    if (!text) return;
    this.show("found");
    this.found = null;
    const found = await this.ask(`/v1/live/search?q=${encodeURIComponent(text)}`);
    if (found === undefined) return;
    this.found = this.shownItem = found;
    if (found && found.cases.length === 1 && !found.events.length) await this.openCase(found.cases[0]);
    else if (found && found.events.length === 1 && !found.cases.length) await this.openEvent(found.events[0].source, found.events[0].event_id);
  },
  // The newest reports that have this reason, first or not.
  openReason(reason) {
    return this.openList({ reason }, `reason=${encodeURIComponent(reason)}&limit=${SHOWN_OF_REASON}`);
  },
  async openList(what, query) {
    this.show("reason");
    this.ofReason = this.shownItem = { ...what, rows: [], cut: false }; // the title says of what, already now
    const answer = await this.ask(`/v1/rejections?${query}`);
    if (answer === undefined) return;
    // an event that was stored twice counts once
    const once = new Map(answer ? answer.rows.map((row) => [`${row.source}/${row.event_id}`, row]) : []);
    const most = what.lifeSafety ? MOST_ALARMS : SHOWN_OF_REASON;
    this.ofReason = this.shownItem = { ...what, rows: [...once.values()], cut: Boolean(answer) && answer.rows.length >= most };
  },
  // How many there are beside those that are listed: as the panel, or the alarm, counts them.
  cutText() {
    const { lifeSafety, reason, rows } = this.ofReason;
    const { life_safety: alarms, reasons } = this.rejected;
    const all = lifeSafety ? alarms : reasons.find((row) => row.reason === reason);
    return this.t("listCut").replace("{}", this.number(rows.length)) + this.t(lifeSafety ? "ofLastHour" : "ofReason").replace("{}", this.number(all ? all.reports : 0));
  },
  listName() {
    if (!this.ofReason) return "";
    return this.ofReason.lifeSafety ? this.t("lifeSafety") : this.reasonName(this.ofReason.reason);
  },
  nothingFound() { return this.found && !this.found.cases.length && !this.found.events.length; },
  openTrend(id) {
    this.trendOf = id;
    this.show("trend");
    this.$nextTick(() => this.drawTrend());
  },
  trendTitle() { return `${this.t(this.trendOf)} · ${this.t("trend")}`; },
  trendFormat() {
    if (this.trendOf.endsWith("_rate")) return (value) => format.percent(value, 2);
    return this.trendOf === "delay_seconds" ? (value) => `${format.seconds(value)} s` : (value) => format.rate(value, this.lang);
  },
  trendTold() { return this.trendOf === "delay_seconds" ? format.delay : this.trendFormat(); },
  // The picture in words: where it began, where it stands, how far it went, and how often nothing was known.
  trendSummary() {
    if (this.view !== "trend") return this.trendTitle();
    const lines = this.series(this.trendOf);
    const points = lines.flat();
    if (!points.length) return this.trendTitle();
    const form = this.trendTold();
    const values = points.map((point) => point.value);
    const told = (point) => `${this.clock(point.at)} ${form(point.value)}`;
    const gaps = lines.length > 1 ? [`${this.t("gaps")} ${lines.length - 1}`] : [];
    return [this.trendTitle(), told(points[0]), told(points[points.length - 1]), ...gaps,
      `${this.t("lowest")} ${form(Math.min(...values))}`, `${this.t("highest")} ${form(Math.max(...values))}`].join("; ");
  },
  drawTrend() {
    if (!window.echarts) return;
    const id = this.trendOf;
    this.drawnAt = this.now;
    drawTrend(this.$refs.trend, this.series(id), {
      now: this.serverMs(), name: this.t(id), format: this.trendFormat(), told: this.trendTold(), zero: !id.endsWith("_rate"), time: (at) => format.clock(new Date(at).toISOString(), this.lang),
    });
  },

  // ---- the operator's key, and a test event
  openKey() {
    this.typedKey = "";
    this.show("key");
  },
  async checkKey() {
    const { key } = this;
    const info = await getJson("/v1/live/key", key);
    if (key === this.key) this.keyInfo = info;
  },
  // A key is taken once it is known to be one: a typing error, or no answer, takes nothing away.
  async useKey() {
    const key = this.typedKey.trim();
    const { turn } = this;
    this.typedKey = "";
    try {
      this.keyInfo = await getJson("/v1/live/key", key);
    } catch (error) {
      if (turn === this.turn) this.problem = error; // of this form, and of no sheet that was opened since
      return;
    }
    const other = key !== this.key;
    this.key = key;
    remember(sessionStorage, KEY, key);
    this.problem = null;
    // what runs goes on under the key that it began with, and would end with that
    if (other || this.connection !== "live") this.connect();
  },
  // With it everything that it opened goes: figures, sheets, what was searched for.
  forgetKey() {
    this.stream.stop();
    remember(sessionStorage, KEY, null);
    location.reload();
  },
  sources() { return this.keyInfo ? this.keyInfo.sources : []; },
  maySend() { return this.sources().length > 0; },
  mayTest() { return this.maySend() && this.takesEvents; },
  keyText() {
    if (!this.maySend()) return this.t("keyReadsOnly");
    return `${this.t("keySends")}: ${this.sources().join(", ")}${this.takesEvents ? "" : ` · ${this.t("keySendsElsewhere")}`}`;
  },
  openTest() {
    Object.assign(this.test, { source: this.sources()[0], result: "", stored: null });
    this.show("test");
  },
  testBody() {
    const id = `test-${Date.now().toString(36)}-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
    const body = {
      event_id: id, source: this.test.source, event_type: "REPORTED", case_id: id, occurred_at: this.serverNow(), channel: "hotline_12345",
      matter_code: this.test.matter, grid_code: this.test.grid.trim(), actor: { type: "clerk" },
    };
    const point = this.test.point.match(/^\s*([\d.]+)\s*[,，\s]\s*([\d.]+)\s*$/);
    if (point) body.location = { lon: Number(point[1]), lat: Number(point[2]), crs: "wgs84" };
    if (this.test.title) body.title = this.test.title;
    if (this.test.description) body.description = this.test.description;
    return body;
  },
  async sendTest(checkOnly) {
    const body = this.testBody();
    Object.assign(this.test, { result: this.t("loading"), stored: null });
    const started = performance.now();
    const { turn } = this;
    const say = (result, stored = null) => {
      if (turn === this.turn) Object.assign(this.test, { result, stored }); // in this sheet, and in none opened since
    };
    try {
      if (checkOnly) {
        say(this.decisionText(await postJson("/v1/events:validate", body, this.key)));
        return;
      }
      await postJson("/v1/events", body, this.key);
      say(this.t("sent"));
      if (!await this.untilStored(body, turn)) {
        say(`${this.t("sent")} · ${this.t("notYet")}`);
        return;
      }
      say(`${this.t("sent")} · ${this.t("queryable")} ${((performance.now() - started) / 1000).toFixed(2)} ${this.t("seconds")}`, { source: body.source, event_id: body.event_id });
    } catch (error) {
      const problems = ((error.problem && error.problem.errors) || []).map((item) => `${item.field || ""} ${word(ERRORS[item.code], this.lang) || item.message}`);
      const noGateway = error.status === 404 || error.status === 405; // of the call itself: nothing was looked for yet
      say(problems.join("; ") || (noGateway ? this.t("keySendsElsewhere") : this.errorText(error)));
    }
  },
  decisionText(report) {
    const [first] = report.events || report.decisions || [];
    if (!first) return JSON.stringify(report);
    return `${this.t("decision")}: ${this.word(first.outcome || first.decision)} ${format.listed((first.reasons || []).map((code) => this.reasonName(code)), this.lang)}`;
  },
  // Each asking is a read of a report, and recorded as one: none after the sheet was left.
  async untilStored(body, turn) {
    const deadline = performance.now() + PATIENCE_MS;
    for (let rest = LEAST_LOOK_MS; turn === this.turn && performance.now() < deadline; rest = Math.min(1.5 * rest, MOST_LOOK_MS)) {
      try {
        await getJson(`/v1/events/${encodeURIComponent(body.source)}/${encodeURIComponent(body.event_id)}`, this.key);
        return true;
      } catch (error) {
        if (error.status !== 404) throw error;
        await new Promise((wake) => setTimeout(wake, rest));
      }
    }
    return false;
  },
});

document.addEventListener("alpine:init", () => window.Alpine.data("page", component));
