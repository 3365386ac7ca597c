'use strict';

// What was enhanced beside its enhancement, with a slider between the two.

const COMPARISON = `
<div class="stage"><video muted playsinline preload="auto"></video><video muted playsinline preload="auto"></video>
<span class="name left"></span><span class="name right"></span>
<div class="slider" role="slider" tabindex="0" aria-orientation="horizontal" aria-valuemin="0" aria-valuemax="100"
 aria-valuenow="50" aria-label="Boundary between before and after"></div></div>
<div class="sides" hidden><select class="left"><option>before</option><option>after</option></select>
<select class="right"><option>before</option><option selected>after</option></select></div>
<div class="controls"><button type="button" class="play">Play</button>
<button type="button" class="back" aria-label="Previous frame">&lsaquo;</button>
<button type="button" class="forward" aria-label="Next frame">&rsaquo;</button>
<input type="range" class="position" min="0" max="0" value="0" step="1" aria-label="Frame">
<output class="frame"></output><label><input type="checkbox" class="loop" checked> Loop</label></div>
<script type="application/json"></script>`;

function compareVideos(job) {
  const figure = make('figure', 'comparison');
  figure.dataset.fps = job.fps;
  figure.innerHTML = COMPARISON;
  setSize(figure.querySelector('.stage'), job);
  figure.querySelector('script').textContent = JSON.stringify([content(job.id, '?variant=source'), content(job.id)]);
  return figure;
}

function compareImages(job) {
  const figure = make('figure', 'comparison');
  const stage = make('div', 'stage');
  setSize(stage, job);
  const slider = make('input', 'fv-slider');
  Object.assign(slider, { type: 'range', min: 0, max: 100, value: 50, ariaLabel: 'Boundary between before and after' });
  slider.addEventListener('input', () => stage.style.setProperty('--split', `${slider.value}%`));
  for (const [name, variant] of [['before', '?variant=source'], ['after', '']]) {
    const image = make('img');
    image.src = content(job.id, variant);
    image.alt = `${title(job)}, ${name}`;
    stage.append(image);
  }
  stage.append(make('span', 'name left', 'before'), make('span', 'name right', 'after'), slider, make('div', 'slider'));
  figure.append(stage);
  return figure;
}

function setSize(stage, job) {
  const [width, height] = job.size.split('x');
  stage.style.cssText = `--width: ${width}; --height: ${height}`;
}
