"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // The legend: each button shows or hides its method in every plot.
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      root.classList.toggle(`hide-m${button.dataset.method}`, !shown);
      hide();
    });
  }

  // Tooltips: the numbers of every shown method at the place nearest to the pointer.
  const tip = document.getElementById("tip");
  const svgSpace = "http://www.w3.org/2000/svg";
  let active = null;

  const read = (svg) =>
    [...svg.querySelectorAll("[data-points]")]
      .filter((group) => group.getClientRects().length && group.dataset.points)
      .map((group) => ({
        name: group.dataset.name,
        swatch: document.querySelector(
          `.legend button[data-method="${/\bm(\d+)\b/.exec(group.getAttribute("class"))[1]}"] svg`,
        ),
        points: group.dataset.points.split(";").map((text) => {
          const [x, y, where, value] = text.split(",");
          return { x: Number(x), y: Number(y), where, value };
        }),
      }));

  const nearest = (points, axis, at) =>
    points.reduce((best, point) =>
      Math.abs(point[axis] - at) < Math.abs(best[axis] - at) ? point : best,
    );

  function hide() {
    tip.hidden = true;
    if (active) {
      active.querySelector(".cursor")?.remove();
      active = null;
    }
  }

  function show(svg, at) {
    const series = read(svg);
    if (!series.length) return hide();
    const axis = svg.dataset.orient;
    const found = series.map((one) => ({ ...one, point: nearest(one.points, axis, at) }));
    const place = nearest(found.map((one) => one.point), axis, at);
    if (active && active !== svg) hide();
    active = svg;
    svg.dataset.at = place[axis];

    let cursor = svg.querySelector(".cursor");
    if (!cursor) {
      cursor = document.createElementNS(svgSpace, "path");
      cursor.setAttribute("class", "cursor");
      svg.append(cursor);
    }
    const box = svg.viewBox.baseVal;
    cursor.setAttribute(
      "d",
      axis === "x" ? `M${place.x} 10V${box.height - 44}` : `M0 ${place.y}H${box.width}`,
    );

    const title = document.createElement("b");
    title.textContent = place.where;
    const rows = found.map((one) => {
      const row = document.createElement("div");
      const other = one.point.where === place.where ? "" : ` (${one.point.where})`;
      const text = document.createElement("span");
      text.textContent = `${one.name} ${one.point.value}${other}`;
      if (one.swatch) row.append(one.swatch.cloneNode(true));
      row.append(text);
      return row;
    });
    tip.replaceChildren(title, ...rows);
    tip.hidden = false;

    const frame = svg.getBoundingClientRect();
    const scale = frame.width / box.width;
    const x = frame.left + place.x * scale;
    const top = frame.top + (axis === "x" ? 10 * scale : place.y * scale + 8);
    const room = document.documentElement.clientWidth;
    const left = x + 14 + tip.offsetWidth < room ? x + 14 : x - 14 - tip.offsetWidth;
    tip.style.left = `${Math.max(4, Math.min(left, room - tip.offsetWidth - 4)) + scrollX}px`;
    tip.style.top = `${top + scrollY}px`;
  }

  for (const svg of document.querySelectorAll("svg.chart[data-orient]")) {
    const point = (event) => {
      const frame = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / frame.width;
      const onX = svg.dataset.orient === "x";
      show(svg, (onX ? event.clientX - frame.left : event.clientY - frame.top) * scale);
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    // A finger leaves as soon as it is lifted; its numbers stay until it taps elsewhere.
    svg.addEventListener("pointerleave", (event) => event.pointerType === "touch" || hide());
    svg.addEventListener("blur", hide);
    svg.addEventListener("focus", () => {
      if (svg.matches(":focus-visible")) show(svg, Number(svg.dataset.at ?? 0));
    });
    svg.addEventListener("keydown", (event) => {
      const axis = svg.dataset.orient;
      const keys = axis === "x" ? ["ArrowLeft", "ArrowRight"] : ["ArrowUp", "ArrowDown"];
      const places = [...new Set(read(svg).flatMap((one) => one.points.map((p) => p[axis])))];
      places.sort((a, b) => a - b);
      if (!places.length) return;
      const here = Number(svg.dataset.at ?? places[0]);
      const last = places.length - 1;
      const place = places.indexOf(places.reduce((a, b) =>
        Math.abs(b - here) < Math.abs(a - here) ? b : a));
      const target = {
        [keys[0]]: Math.max(0, place - 1),
        [keys[1]]: Math.min(last, place + 1),
        Home: 0,
        End: last,
      }[event.key];
      if (event.key === "Escape") hide();
      if (target === undefined) return;
      event.preventDefault();
      show(svg, places[target]);
    });
  }

  addEventListener("resize", hide);
  addEventListener("pointerdown", (event) => active?.contains(event.target) || hide());
})();
