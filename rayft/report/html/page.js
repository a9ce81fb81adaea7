"use strict";
(() => {
  const { figures, trials } = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 600px)");
  const touch = narrow.matches || matchMedia("(pointer: coarse)").matches;
  const themes = {
    light: {
      ink: "#1b2430", muted: "#8792a2", bg: "#ffffff", veil: "rgba(255,255,255,0.8)", none: "rgba(0,0,0,0)",
      grid: "#e4e8ee", scale: ["#dfe8f1", "#8fbde0", "#2f86c4", "#00497f"],
      c0: "#0072b2", c1: "#d55e00", c2: "#009e73", c3: "#a8457e", c4: "#b07c00", c5: "#3aa0dc",
    },
    dark: {
      ink: "#e6eaf0", muted: "#7c8899", bg: "#191f28", veil: "rgba(25,31,40,0.8)", none: "rgba(0,0,0,0)",
      grid: "#2c3542", scale: ["#28323f", "#2a5f8a", "#4aa3dd", "#c4e6ff"],
      c0: "#56b4e9", c1: "#f0883e", c2: "#2cc39a", c3: "#dd8fbb", c4: "#e6c54a", c5: "#8fd0ff",
    },
  };

  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  // The colour at 0 (the weakest) to 1 (the strongest) of a scale.
  function shade(scale, at) {
    const place = Math.min(0.9999, Math.max(0, at)) * (scale.length - 1);
    const [low, high] = [channels(scale[Math.floor(place)]), channels(scale[Math.floor(place) + 1])];
    const mixed = low.map((value, index) => Math.round(value + (place % 1) * (high[index] - value)));
    return `rgb(${mixed.join(",")})`;
  }

  function colour(name, theme) {
    if (name === "@scale") return theme.scale.map((own, index) => [index / (theme.scale.length - 1), own]);
    if (name.startsWith("@scale:")) return shade(theme.scale, 0.2 + 0.8 * Number(name.slice(7)));
    return theme[name.slice(1)];
  }

  // A copy in which colours have their values; only what is a colour's place is looked at, never a label.
  function painted(value, theme, key) {
    if (Array.isArray(value)) return value.map((one) => painted(one, theme, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, painted(one, theme, name)]));
    }
    const isColour = typeof value === "string" && value[0] === "@" && /colou?r(scale)?$/.test(key);
    return isColour ? colour(value, theme) : value;
  }

  function layoutOf(own, theme) {
    const layout = painted(own, theme, "");
    for (const name of ["xaxis", "yaxis"]) {
      layout[name] = { gridcolor: theme.grid, linecolor: theme.muted, zerolinecolor: theme.grid, tickcolor: theme.muted,
        ...layout[name] };
    }
    return {
      autosize: true, paper_bgcolor: theme.none, plot_bgcolor: theme.none, dragmode: touch ? false : "zoom",
      font: { color: theme.ink, size: 12, family: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif" },
      hoverlabel: { bgcolor: theme.bg, bordercolor: theme.muted, font: { color: theme.ink }, align: "left", namelength: -1 },
      modebar: { bgcolor: theme.none, color: theme.muted, activecolor: theme.ink },
      hovermode: "closest", legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, ...layout,
      margin: { t: 24, r: 16, b: 44, l: narrow.matches ? 44 : 56, ...layout.margin },
    };
  }

  // A long text would leave the screen: plotly breaks no lines by itself.
  function wrapped(text) {
    const width = narrow.matches ? 38 : 76;
    return text.replace(new RegExp(`(.{1,${width}}) `, "g"), "$1<br>");
  }

  const about = Object.fromEntries(Object.entries(trials).map(([number, text]) => [number, wrapped(text)]));

  function traceOf(own, theme) {
    const { trials: numbers, ...trace } = painted(own, theme, "");
    if (numbers) trace.text = numbers.map((number) => about[number]);
    return trace;
  }

  // Named one by one: the rest of plotly's buttons lead to services of its own, or are for other kinds of figures.
  const buttons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
  const config = { responsive: true, displaylogo: false, displayModeBar: !touch, modeBarButtons: buttons };
  const chosen = {};

  function draw(id) {
    const theme = dark.matches ? themes.dark : themes.light;
    const { layout, views } = figures[id];
    const view = views[chosen[id] ?? 0];
    const data = view.data.map((trace) => traceOf(trace, theme));
    return Plotly.react(id, data, layoutOf({ ...layout, ...view.layout }, theme), config);
  }

  const drawAll = () => Object.keys(figures).forEach(draw);

  for (const select of document.querySelectorAll("select[data-figure]")) {
    select.addEventListener("change", () => {
      chosen[select.dataset.figure] = Number(select.value);
      draw(select.dataset.figure);
    });
  }
  dark.addEventListener("change", drawAll);
  if (matchMedia("(max-width: 900px)").matches) document.querySelector("nav details").open = false;
  drawAll();
  document.documentElement.dataset.drawn = String(Object.keys(figures).length);
})();
