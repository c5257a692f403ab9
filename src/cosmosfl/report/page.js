// Draws the pictures, in the colours of the page, again when the reader switches between light and dark.
(function () {
  "use strict";

  function draw() {
    const page = getComputedStyle(document.documentElement);
    function resolve(key, value) {
      const name = typeof value === "string" && /^var\((--[a-z-]+)\)$/.exec(value);
      // only where a colour belongs: as the value of such a key, or in a colour scale's pair of number and colour
      const colour = /color$/.test(key) || (key === "1" && this.length === 2 && typeof this[0] === "number");
      return name && colour ? page.getPropertyValue(name[1]).trim() : value;
    }
    for (const place of document.querySelectorAll(".plot")) {
      const figure = JSON.parse(document.getElementById(place.id + "-data").textContent, resolve);
      Plotly.react(place, figure.data, figure.layout, { responsive: true, displayModeBar: false });
    }
  }

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
