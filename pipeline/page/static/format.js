// Numbers, times and durations as people read them. The city's time zone, whatever the screen's is.

const ZONE = "Asia/Shanghai";
const NONE = "—";
export const HOUR_MS = 3_600_000;

export const locale = (lang) => (lang === "zh" ? "zh-CN" : "en-GB");

// Several words after each other.
export const listed = (words, lang) => words.join(lang === "zh" ? "、" : ", ");

export function percent(value, digits = 1) {
  if (value === null || value === undefined) return NONE;
  // as read/percent.py: rounded half up, but what is below 1 never reads as 100 %
  const scale = 10 ** digits;
  const rounded = Math.floor(value * 100 * scale + 0.5 + 1e-7);
  return ((value < 1 ? Math.min(rounded, 100 * scale - 1) : rounded) / scale).toFixed(digits) + "%";
}

export function count(value, lang) {
  return value === null || value === undefined ? NONE : Math.round(value).toLocaleString(locale(lang));
}

export function rate(value, lang) {
  if (value === null || value === undefined) return NONE;
  if (value !== 0 && value < 10) return value.toFixed(1);
  return Math.round(value).toLocaleString(locale(lang));
}

export function seconds(value) {
  if (value === null || value === undefined) return NONE;
  return value < 10 ? value.toFixed(2) : value.toFixed(0);
}

// Delays above the last bound of their histogram come as null; a trend keeps them as that bound.
export const LONGEST_DELAY = 30;
export function delay(value) {
  return value === null || value >= LONGEST_DELAY ? `> ${LONGEST_DELAY} s` : `${seconds(value)} s`;
}

// Points that belong together: a line that went on over an outage would hide it. points: [{at, value, known}] by
// time; a value of null that is known is a rate without a denominator, and no interruption.
const APART_MS = 420_000; // those that are read back lie six minutes apart
export function runs(points) {
  const found = [];
  let before = null;
  for (const point of points) {
    if (point.value !== null) {
      if (before === null || Date.parse(point.at) - Date.parse(before.at) > APART_MS) found.push([]);
      found[found.length - 1].push(point);
      before = point;
    } else if (!point.known) before = null;
  }
  return found;
}

export function duration(value, lang) {
  if (value === null || value === undefined) return NONE;
  const zh = lang === "zh";
  const minutes = Math.floor(value / 60);
  if (minutes < 1) return zh ? `${Math.floor(value)}秒` : `${Math.floor(value)} s`;
  if (minutes < 60) return zh ? `${minutes}分钟` : `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48 && minutes % 60 === 0) return zh ? `${hours}小时` : `${hours} h`;
  if (hours < 48) return zh ? `${hours}小时${minutes % 60}分` : `${hours} h ${minutes % 60} m`;
  if (hours % 24 === 0) return zh ? `${hours / 24}天` : `${hours / 24} d`;
  return zh ? `${Math.floor(hours / 24)}天${hours % 24}小时` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

// The same where there is room for four signs. 时 stands behind a decimal: no time of day.
export function briefDuration(value, lang) {
  const [minute, hour, day] = lang === "zh" ? ["分", "时", "天"] : ["m", "h", "d"];
  if (value < 60) return `<1${minute}`;
  if (value < 3600) return `${Math.floor(value / 60)}${minute}`;
  return value < 172800 ? `${(value / 3600).toFixed(1)}${hour}` : `${(value / 86400).toFixed(0)}${day}`;
}

export function distance(metres, lang) {
  if (metres < 1000) return `${Math.round(metres)} ${lang === "zh" ? "米" : "m"}`;
  return `${(metres / 1000).toFixed(1)} ${lang === "zh" ? "公里" : "km"}`;
}

export function bytes(value) {
  if (value < 1024) return `${value} B`;
  return value < 1048576 ? `${(value / 1024).toFixed(0)} kB` : `${(value / 1048576).toFixed(1)} MB`;
}

export function clock(iso, lang) {
  if (!iso) return NONE;
  return new Intl.DateTimeFormat(locale(lang), {
    timeZone: ZONE, hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false,
  }).format(new Date(iso));
}

// The time of day, and the date where it is not that of `now`.
export function lately(iso, now, lang) {
  if (!iso) return NONE;
  const day = (at) => new Intl.DateTimeFormat("en-GB", { timeZone: ZONE }).format(new Date(at));
  if (day(iso) === day(now)) return clock(iso, lang);
  return new Intl.DateTimeFormat(locale(lang), {
    timeZone: ZONE, month: lang === "zh" ? "2-digit" : "short", day: "2-digit", hour: "2-digit", minute: "2-digit", hour12: false,
  }).format(new Date(iso));
}

export function instant(iso, lang) {
  if (!iso) return NONE;
  return new Intl.DateTimeFormat(locale(lang), {
    timeZone: ZONE, year: "numeric", month: "2-digit", day: "2-digit",
    hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false,
  }).format(new Date(iso));
}

export function date(iso, lang) {
  const text = new Intl.DateTimeFormat(locale(lang), {
    timeZone: ZONE, year: "numeric", month: "long", day: "numeric", weekday: lang === "zh" ? "long" : "short",
  }).format(new Date(iso));
  return text.replace("日星期", "日 星期");
}

// As Date.now, but who sets the clock of this computer changes nothing.
export const steadyNow = () => performance.timeOrigin + performance.now();

// How far the server's clock is ahead of ours, out of messages that carry its time. What one took on its way makes the
// server seem that much further behind, so the largest of a while is nearest to the truth; the newest alone would
// hide every delay on the way to this screen. What goes on for longer than a while is taken for the truth.
const SKEW_MS = 600_000;

export class Skew {
  constructor() { this.seen = []; } // by time, each larger than what came after it

  // sent: the server's time, arrived: ours, ms. Returns the skew as of now.
  add(sent, arrived) {
    const skew = sent - arrived;
    this.seen = this.seen.filter((one) => one.skew > skew && arrived - one.at < SKEW_MS);
    this.seen.push({ skew, at: arrived });
    return this.seen[0].skew;
  }
}
