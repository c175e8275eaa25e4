// The two ECharts pictures: percentiles with their limits, and the trend of one tile.
// Tooltips are drawn on the canvas (richText): a name out of the data is never read as HTML.

import { HOUR_MS } from "./format.js";

const MARKS = [60, 300, 600, 1800, 3600, 21600, 86400, 604800, 2592000]; // of the time axis, seconds
const ABOVE = 26; // the legend, and below the lines the axis; pixels of 14 px letters
const BELOW = 22;
const LEAST_PITCH = 13; // of two lines whose letters do not touch
const FEWER_MARKS = [60, 3600, 86400, 2592000];
const FONT = getComputedStyle(document.body).fontFamily;

const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function chart(element) {
  return window.echarts.getInstanceByDom(element) || window.echarts.init(element, null, { renderer: "canvas" });
}

function base() {
  return {
    animation: false,
    textStyle: { fontFamily: FONT, color: ink("--text") },
    tooltip: {
      renderMode: "richText", confine: true, backgroundColor: ink("--raised"), borderColor: ink("--line"),
      textStyle: { fontFamily: FONT, color: ink("--text"), fontSize: sized(12) },
    },
  };
}

const axisLine = () => ({ lineStyle: { color: ink("--line") } });
// Pictures grow with the letters of the page.
const sized = (pixels) => pixels * parseFloat(getComputedStyle(document.documentElement).fontSize) / 14;
const quiet = () => ({ color: ink("--quiet"), fontFamily: FONT, fontSize: sized(11.5) });

// How many lines of percentiles can be read in a height, pixels.
export const linesWithin = (height) => Math.max(1, Math.floor((height - sized(ABOVE + BELOW)) / sized(LEAST_PITCH)));

// The library is most of what the page loads: it comes after the first figures, which do not need it.
let loading = null;

export function loadCharts() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL("./vendor/echarts.common.min.js", import.meta.url).href;
    script.onload = resolve;
    script.onerror = () => {
      script.remove();
      loading = null; // what failed once may be asked for again
      reject(new Error("the charts' library did not come"));
    };
    document.head.append(script);
  });
  return loading;
}

// rows: [{name, values: {p50, p90, p99} in seconds, limits: [from, to] in seconds or null}], first on top.
export function drawTimes(element, rows, { names, format }) {
  const picture = chart(element);
  if (!rows.length) {
    picture.clear();
    return;
  }
  const times = rows.flatMap((row) => [row.values.p50, ...(row.limits || [])]).filter((value) => value !== null);
  const low = Math.max(...MARKS.filter((mark) => mark <= Math.min(...times)), MARKS[0]);
  const x = (value) => Math.max(value, low);
  const top = 1.2 * Math.max(3600, ...rows.flatMap((row) => [row.values.p99 || 0, ...(row.limits || [])]));
  const narrow = element.clientWidth < sized(480);
  const marks = (narrow ? FEWER_MARKS : MARKS).filter((mark) => mark >= low && mark <= top);
  const pitch = (element.clientHeight - sized(ABOVE + BELOW)) / rows.length;
  const series = [
    ["p50", "circle", 9, ink("--accent")],
    ["p90", "diamond", 11, ink("--accent")],
    ["p99", "triangle", 9, ink("--quiet")],
  ].map(([percentile, symbol, size, color], index) => ({
    name: percentile, type: "scatter", symbol, symbolSize: sized(size), itemStyle: { color }, z: 4,
    data: rows.map((row, y) => (row.values[percentile] === null ? null : [x(row.values[percentile]), y])).filter(Boolean),
    markLine: index ? undefined : {
      silent: true, symbol: "none", label: { show: false }, lineStyle: { color: ink("--accent"), opacity: 0.3, width: sized(4), type: "solid" },
      data: rows.filter((row) => row.values.p50 !== null).map((row) => {
        const y = rows.indexOf(row);
        return [{ coord: [x(row.values.p50), y] }, { coord: [x(row.values.p99), y] }];
      }),
    },
  }));
  series.push({
    type: "scatter", data: [], silent: true,
    markLine: {
      silent: true, symbol: "none", label: { show: false }, lineStyle: { color: ink("--line"), type: "solid", width: 1 }, z: 0,
      data: marks.slice(1).map((mark) => ({ xAxis: mark })),
    },
  });
  series.push({
    name: names.limit, type: "scatter", symbol: "rect", symbolSize: [sized(3), Math.min(sized(15), 0.9 * pitch)], itemStyle: { color: ink("--bad") }, z: 5,
    data: rows.flatMap((row, y) => (row.limits ? [...new Set(row.limits)].map((limit) => [x(limit), y]) : [])),
    markLine: {
      silent: true, symbol: "none", label: { show: false }, lineStyle: { color: ink("--bad"), opacity: 0.3, width: 2, type: "dotted" },
      data: rows.flatMap((row, y) => (row.limits && row.limits[0] < row.limits[1]
        ? [[{ coord: [x(row.limits[0]), y] }, { coord: [x(row.limits[1]), y] }]] : [])),
    },
  });
  const option = base();
  Object.assign(option, {
    legend: { top: 0, right: 4, itemWidth: sized(12), itemHeight: sized(10), itemGap: sized(10), textStyle: quiet(), data: ["p50", "p90", "p99", names.limit] },
    grid: { left: 4, right: 18, top: sized(ABOVE), bottom: 2, containLabel: true },
    xAxis: {
      type: "log", logBase: 10, min: low, max: top, axisLabel: { ...quiet(), formatter: format, customValues: marks },
      axisTick: { customValues: marks }, splitLine: { show: false }, axisLine: axisLine(),
    },
    yAxis: {
      type: "category", inverse: true, data: rows.map((row) => row.name), axisTick: { show: false }, axisLine: axisLine(),
      axisLabel: { ...quiet(), color: ink("--text"), width: narrow ? sized(92) : Math.min(sized(250), 0.3 * element.clientWidth), overflow: "truncate", interval: 0 },
    },
    series,
  });
  option.tooltip.trigger = "item";
  option.tooltip.formatter = (point) => {
    const row = rows[point.value[1]];
    const limits = row.limits ? [...new Set(row.limits)].map(format).join(" – ") : "—";
    return [row.name, ...["p50", "p90", "p99"].map((p) => `${p}  ${row.values[p] === null ? "—" : format(row.values[p])}`), `${names.limit}  ${limits}`].join("\n");
  };
  picture.setOption(option, true);
  picture.resize();
}

// lines: [[{at, value}]], each drawn by itself; now: the right edge, ms; format: of the axis, told: of a point.
export function drawTrend(element, lines, { now, name, format, told, time, zero }) {
  const picture = chart(element);
  const option = base();
  const points = lines.flatMap((line, n) => [
    ...(n ? [[Date.parse(line[0].at) - 1, null]] : []), ...line.map((point) => [Date.parse(point.at), point.value]),
  ]);
  const alone = lines.some((line) => line.length === 1); // seen only as a dot
  Object.assign(option, {
    grid: { left: 8, right: 16, top: 16, bottom: 8, containLabel: true },
    xAxis: { type: "time", min: now - HOUR_MS, max: now, axisLabel: { ...quiet(), formatter: (at) => time(at).slice(0, 5), hideOverlap: true }, axisLine: axisLine(), splitLine: { show: false } },
    yAxis: { type: "value", scale: !zero, min: zero ? 0 : null, axisLabel: { ...quiet(), formatter: format }, splitLine: { lineStyle: { color: ink("--line"), opacity: 0.6 } } },
    series: [{
      name, type: "line", showSymbol: alone || points.length < 20, symbolSize: sized(5), connectNulls: false, lineStyle: { width: 2, color: ink("--accent") },
      itemStyle: { color: ink("--accent") }, areaStyle: { color: ink("--accent"), opacity: 0.08 },
      data: points,
    }],
  });
  option.tooltip.trigger = "axis";
  option.tooltip.formatter = (found) => (found.length && found[0].value[1] !== null ? `${time(found[0].value[0])}\n${name}  ${told(found[0].value[1])}` : "");
  picture.setOption(option, true);
  picture.resize();
}
