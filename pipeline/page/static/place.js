// What is looked at, in the page's address: Back goes up again, a link shows the same to others, and a page that loads
// itself anew comes back to it. `#/440704001?metric=open`: the area gone into, and what else is not as at first.

import { METRICS } from "./area.js";

const CHOICES = {
  metric: METRICS,
  dimension: ["department", "matter"],
  span: ["response_seconds", "resolution_seconds"],
};
const AREA = /^(\d{6}(\d{3}(\d{3})?)?)?$/;
const AREA_ENDS = [6, 9, 12]; // of the codes of district, town, village

// "" where all is as at first
export function write(chosen) {
  const { path } = chosen; // of the page's component, whose properties cannot be spread
  const others = Object.entries(CHOICES).filter(([name, [first]]) => chosen[name] !== first);
  const query = others.map(([name]) => `${name}=${chosen[name]}`).join("&");
  const area = path.length ? path[path.length - 1] : "";
  return area || query ? `#/${area}${query && "?"}${query}` : "";
}

// null where the address names no place, as after the link to the table; what it names wrongly is as at first
export function read(hash) {
  if (hash && !hash.startsWith("#/")) return null;
  const [area, query] = hash.slice(2).split("?");
  const given = new URLSearchParams(query);
  const place = { path: AREA.test(area) ? AREA_ENDS.filter((end) => end <= area.length).map((end) => area.slice(0, end)) : [] };
  for (const [name, choices] of Object.entries(CHOICES)) {
    place[name] = choices.includes(given.get(name)) ? given.get(name) : choices[0];
  }
  return place;
}
