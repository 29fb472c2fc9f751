"use strict";
// The explorer: a location chosen on the photo shows, for each model, the map that was computed for it.
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent).explorer;
  if (!data) return;
  const { rows, columns, models, photos } = data;
  const root = document.getElementById("explorer");
  const picker = document.getElementById("picker");
  const readout = document.getElementById("readout");
  const tiles = [...root.querySelectorAll("figure[data-model]")];
  const buttons = [...root.querySelectorAll("button[data-photo]")];
  const chosen = { photo: 0, row: Math.floor(rows / 2), column: Math.floor(columns / 2) };
  const atlases = photos.map((photo) => photo.atlases.map(pictureOf));

  function pictureOf(source) {
    const picture = new Image();
    picture.src = source;
    return picture;
  }

  function percent(share) {
    return `${(100 * share).toPrecision(2)} %`;
  }

  async function drawMap(tile, index, { photo, row, column }) {
    const [height, width] = data.map_size;
    const atlas = atlases[photo][index];
    await atlas.decode();
    if (photo !== chosen.photo || row !== chosen.row || column !== chosen.column) return;
    const context = tile.querySelector("canvas").getContext("2d");
    context.clearRect(0, 0, width, height);
    context.drawImage(atlas, column * width, row * height, width, height, 0, 0, width, height);
  }

  function mark(element, row, column, height, width) {
    element.style.inset = `${(100 * row) / height}% auto auto ${(100 * column) / width}%`;
    element.style.width = `${100 / width}%`;
    element.style.height = `${100 / height}%`;
  }

  function show() {
    const { photo, row, column } = chosen;
    for (const image of root.querySelectorAll(".photo")) {
      if (image.src !== photos[photo].source) image.src = photos[photo].source;
    }
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(index === photo)));
    mark(picker.querySelector(".marker"), row, column, rows, columns);
    readout.textContent = `Row ${row + 1} of ${rows}, column ${column + 1} of ${columns}`;
    tiles.forEach((tile, index) => {
      const model = models[index];
      const [height, width] = model.output_size;
      const [at_row, at_column] = [model.rows[row], model.columns[column]];
      const half = photos[photo].half_shares[index][row][column];
      const told = half === null
        ? "nothing reaches it"
        : `half of what reaches it comes from ${percent(half)} of the pixels`;
      mark(tile.querySelector(".marker"), at_row, at_column, height, width);
      const is_other = height !== rows || width !== columns;
      const place = is_other ? ` (output ${at_row + 1}, ${at_column + 1} of ${height} × ${width})` : "";
      tile.querySelector(".told").textContent = told + place;
      tile.querySelector("canvas").setAttribute("aria-label", `${model.name}: ${told}`);
      drawMap(tile, index, { ...chosen });
    });
  }

  function choose(row, column) {
    chosen.row = Math.min(rows - 1, Math.max(0, row));
    chosen.column = Math.min(columns - 1, Math.max(0, column));
    show();
  }

  function chooseAt(event) {
    const box = event.currentTarget.getBoundingClientRect();
    choose(
      Math.floor(((event.clientY - box.top) / box.height) * rows),
      Math.floor(((event.clientX - box.left) / box.width) * columns),
    );
  }

  for (const area of [picker, ...tiles.map((tile) => tile.querySelector(".stack"))]) {
    area.addEventListener("click", chooseAt);
    area.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse" && event.buttons === 1) chooseAt(event);
    });
  }
  picker.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const step = steps[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    choose(chosen.row + step[0], chosen.column + step[1]);
  });
  buttons.forEach((button, index) => button.addEventListener("click", () => {
    chosen.photo = index;
    show();
  }));
  document.getElementById("strength").addEventListener("input", (event) => {
    for (const tile of tiles) tile.querySelector("canvas").style.opacity = event.target.value / 100;
  });
  buttons.forEach((button, index) => { button.querySelector("img").src = photos[index].source; });
  root.querySelectorAll("img").forEach((image) => { image.draggable = false; });
  show();
})();
