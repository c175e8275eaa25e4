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
