// Before the first paint: the theme and language last chosen here, else the screen's own theme and Chinese.
const held = (name) => {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // storage is switched off
  }
};
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
document.documentElement.dataset.theme = held("gridpipe.theme") || (dark ? "dark" : "light");
document.documentElement.lang = held("gridpipe.lang") === "en" ? "en" : "zh-CN";

// Letters follow the window, which zooming makes smaller: by itself it would change nothing on a wall. The window from
// outside stays as it is. A panel of the browser's beside the page takes less than the least of these steps of zooming;
// above the largest nothing is known, as of a window that is not shown.
const LEAST = 1.2;
const MOST = 5;
function follow() {
  const zoom = outerWidth / innerWidth;
  const zoomed = zoom >= LEAST && zoom <= MOST;
  document.documentElement.toggleAttribute("data-zoomed", zoomed);
  document.documentElement.style.setProperty("--zoom", zoomed ? zoom : 1);
}
follow();
addEventListener("resize", follow);
