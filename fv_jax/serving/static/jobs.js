'use strict';

// What the page shows of jobs. It polls the HTTP interface, and changes of each card only what has changed, so that
// videos play on. The lists are filled wherever the page has an element for them. What is written of jobs is in
// job_text.js, and their comparisons are made in job_comparison.js.

const ACTIVE = ['queued', 'in_progress'];
const FAST = 700; // milliseconds between two polls while jobs wait, and while none does
const SLOW = 5000;
const MOST = 100; // jobs of one answer
const MAX_REROLLED = 100000; // a short seed is easier to read and to type
const chosen = new Set(); // ids of the previews to enhance
const cards = new WeakMap(); // element of a list -> Map of id -> card
let jobs = [];
let models = {};
let timer = 0;
let adding = false; // whether the form's jobs are being added to the queue

async function call(method, path, body) {
  const options = { method, headers: body ? { 'Content-Type': 'application/json' } : {} };
  if (body) options.body = JSON.stringify(body);
  const response = await fetch(`/v1${path}`, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error?.message ?? `${response.status} ${response.statusText}`);
  return answer;
}

// Runs what a button does; an error is shown beside it.
async function act(button, action) {
  button.disabled = true;
  try {
    await action();
  } catch (error) {
    showProblem(error.message);
  } finally {
    button.disabled = false;
  }
  await refresh();
}

function showProblem(message) {
  document.querySelector('.fv-problem')?.remove();
  if (!message) return;
  const box = make('div', 'fv-problem');
  box.setAttribute('role', 'alert');
  box.append(make('span', '', message), makeButton('Close', () => box.remove()));
  document.body.append(box);
}

function make(tag, className = '', text = '') {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

function makeButton(text, onClick, className = '') {
  const button = make('button', className, text);
  button.type = 'button';
  button.addEventListener('click', () => onClick(button));
  return button;
}

// Sets a text only where it differs: a screen reader would read it again.
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const cancelling = new Set();

function remove(job, button) {
  if (button.dataset.sure !== 'yes') { // a second click within four seconds
    button.dataset.sure = 'yes';
    button.textContent = 'Really?';
    setTimeout(() => { button.dataset.sure = ''; button.textContent = 'Delete'; }, 4000);
    return;
  }
  act(button, async () => { await call('DELETE', `/videos/${job.id}`); chosen.delete(job.id); });
}

function cancel(job, button) {
  cancelling.add(job.id);
  act(button, () => call('POST', `/videos/${job.id}/cancel`));
}

const again = (job, changes, button) => act(button, () => call('POST', `/videos/${job.id}/remix`, changes));
const reroll = (job, button) => again(job, { seed: Math.floor(Math.random() * MAX_REROLLED) }, button);

// Writes the prompt and the seed of a job into the form.
function edit(job) {
  const fields = [['#fv-prompt textarea', job.prompt], ['#fv-seed input', job.seed]];
  for (const [selector, value] of fields) {
    const field = document.querySelector(selector);
    field.value = value;
    field.dispatchEvent(new Event('input', { bubbles: true }));
  }
  const prompt = document.querySelector('#fv-prompt textarea');
  prompt.scrollIntoView({ block: 'center' });
  prompt.focus({ preventScroll: true });
}

// A job: media, title, state, buttons. Subclasses fill in media and buttons.
class Card {
  constructor(job) {
    this.job = job;
    this.root = make('article', `fv-card fv-${job.kind}`);
    this.root.dataset.id = job.id;
    this.media = make('div', 'fv-media');
    const [width, height] = job.size.split('x');
    this.media.style.aspectRatio = `${width} / ${height}`;
    this.text = make('p', 'fv-title', title(job));
    this.text.title = title(job);
    this.details = make('p', 'fv-note', describe(job));
    this.bar = make('progress');
    this.bar.max = 100;
    this.bar.setAttribute('aria-label', `Progress of ${title(job)}`);
    this.state = make('p', 'fv-state');
    this.buttons = make('div', 'fv-buttons');
    this.root.append(this.media, this.text, this.details, this.state, this.buttons);
    this.update(job);
  }

  update(job) {
    const changed = this.status !== job.status;
    this.job = job;
    this.status = job.status;
    setText(this.state, describeState(job));
    this.state.hidden = job.status === 'completed';
    this.bar.value = job.progress;
    if (!changed) return;
    this.root.dataset.status = job.status;
    this.media.replaceChildren();
    this.buttons.replaceChildren();
    if (job.status === 'completed') this.showResult(job);
    else if (ACTIVE.includes(job.status)) this.media.append(this.bar);
    if (ACTIVE.includes(job.status)) this.addButton('Cancel', (button) => cancel(this.job, button));
    else this.addFinished(job);
  }

  // hint: what the button does, where its name is too short to say it.
  addButton(text, onClick, hint = '') {
    const button = makeButton(text, onClick);
    button.title = hint;
    this.buttons.append(button);
  }

  addLink(text, address, name) {
    const link = make('a', '', text);
    link.href = address;
    if (name) link.download = '';
    else link.target = '_blank';
    this.buttons.append(link);
  }

  addReroll(job) {
    this.addButton('Re-roll', (button) => reroll(job, button), 'The same once more with another seed');
  }

  addFinished(job) {
    this.addButton('Make again', (button) => again(job, {}, button), 'The same once more: same seed, same settings');
    this.addButton('Delete', (button) => remove(job, button));
  }

  showResult(job) {
    const media = make(job.is_image ? 'img' : 'video');
    media.src = content(job.id);
    if (job.is_image) media.alt = title(job);
    else Object.assign(media, { muted: true, loop: true, autoplay: true, playsInline: true, controls: false });
    this.media.append(media);
  }
}

class PreviewCard extends Card {
  showResult(job) {
    super.showResult(job);
    this.media.querySelector('video').setAttribute('aria-label', `Preview: ${title(job)}`);
    this.box = make('input');
    this.box.type = 'checkbox';
    this.box.checked = chosen.has(job.id);
    this.box.addEventListener('change', () => {
      if (this.box.checked) chosen.add(job.id);
      else chosen.delete(job.id);
      this.root.classList.toggle('fv-chosen', this.box.checked);
      showToolbar();
    });
    this.media.onclick = () => this.box.click();
    const label = make('label', 'fv-choose');
    label.append(this.box, make('span', '', 'Choose'));
    this.buttons.append(label);
    this.root.classList.toggle('fv-chosen', this.box.checked);
  }

  addFinished(job) {
    if (job.status === 'completed') this.addReroll(job);
    else this.addButton('Try again', (button) => again(job, {}, button));
    this.addButton('Edit', () => edit(job), 'Writes its prompt and seed into the form above');
    if (job.status === 'completed') this.addLink('Download', content(job.id, '?download=true'), true);
    this.addButton('Delete', (button) => remove(job, button));
  }
}

// An enhanced video or image, over what it was made from, with a slider between the two.
class EnhancedCard extends Card {
  showResult(job) {
    // The preview may have been deleted; the upload is kept as long as the job.
    if (job.source_video_id && !jobs.some((other) => other.id === job.source_video_id)) {
      super.showResult(job);
      return;
    }
    this.media.style.aspectRatio = '';
    this.media.append(job.is_image ? compareImages(job) : compareVideos(job));
    if (!job.is_image) new Comparison(this.media.firstElementChild);
  }

  addFinished(job) {
    if (job.status === 'completed') {
      this.addLink('Download', content(job.id, '?download=true'), true);
      this.addLink('Metadata', content(job.id, '?variant=metadata'));
      this.addReroll(job);
    }
    super.addFinished(job);
  }
}

// A line of the history.
class Entry extends Card {
  constructor(job) {
    super(job);
    const kinds = { preview: 'Preview', enhance: 'Enhanced preview', clip: 'Enhanced upload' };
    this.root.className = 'fv-entry';
    this.details.textContent = `${kinds[job.kind]} · ${new Date(job.created_at * 1000).toLocaleString()} · ${describe(job)}`;
  }

  showResult(job) {
    if (job.kind === 'preview' || job.is_image) super.showResult(job);
    else {
      super.showResult({ ...job, is_image: false });
      this.media.firstElementChild.preload = 'metadata';
    }
  }

  addFinished(job) {
    if (job.prompt && job.kind === 'preview') this.addButton('Edit', () => { openTab(0); edit(job); });
    if (job.status === 'completed') {
      this.addLink('Download', content(job.id, '?download=true'), true);
      this.addLink('Metadata', content(job.id, '?variant=metadata'));
    }
    super.addFinished(job);
  }
}

const openTab = (index) => document.querySelectorAll('[role=tab]')[index]?.click();

// Fills a list: cards of new jobs are added, those of deleted jobs removed, all others updated.
function fill(selector, shown, makeCard, empty, heading = '') {
  const list = document.querySelector(selector);
  if (!list) return;
  if (!cards.has(list)) {
    cards.set(list, new Map());
    list.append(make('h2', '', heading), make('p', 'fv-empty', empty), make('div', 'fv-list'));
  }
  const [title, note, box] = list.children;
  title.hidden = !heading || !shown.length;
  note.hidden = shown.length > 0 || !empty;
  const known = cards.get(list);
  const ids = new Set(shown.map((job) => job.id));
  for (const [id, card] of known) {
    if (!ids.has(id)) {
      card.root.remove();
      known.delete(id);
    }
  }
  let before = null;
  for (const job of shown) {
    let card = known.get(job.id);
    if (card) card.update(job);
    else known.set(job.id, card = makeCard(job));
    const place = before ? before.nextSibling : box.firstChild;
    if (card.root !== place) box.insertBefore(card.root, place);
    before = card.root;
  }
}

// The button that enhances the chosen previews.
function showToolbar() {
  const list = document.querySelector('#fv-previews');
  if (!list) return;
  let bar = document.querySelector('#fv-toolbar');
  if (!bar) {
    bar = make('div');
    bar.id = 'fv-toolbar';
    bar.append(makeButton('', enhance, 'fv-primary'), make('span', 'fv-note'));
    list.after(bar);
  }
  for (const id of chosen) if (!jobs.some((job) => job.id === id && job.status === 'completed')) chosen.delete(id);
  const [button, note] = bar.children;
  const ready = jobs.some((job) => job.kind === 'preview' && job.status === 'completed');
  bar.hidden = !ready || !models.enhance;
  button.disabled = chosen.size === 0;
  setText(button, chosen.size > 1 ? `Enhance the ${chosen.size} chosen` : 'Enhance the chosen one');
  const costs = jobs.filter((job) => chosen.has(job.id)).map((job) => job.enhance_cost);
  const sum = (name) => costs.reduce((total, cost) => total + cost[name], 0);
  const known = costs.length > 0 && costs.every(Boolean);
  const cost = known ? { seconds: sum('seconds'), chip_seconds: sum('chip_seconds'), basis: costs[0].basis } : null;
  const size = models.enhance ? models.enhance.size.replace('x', ' x ') : '';
  setText(note, costs.length ? formatCost(cost) : `Choose previews, to make videos of ${size} pixels from them`);
}

async function enhance(button) {
  await act(button, async () => {
    for (const id of [...chosen]) {
      await call('POST', `/videos/${id}/enhance`);
      chosen.delete(id);
      const box = document.querySelector(`#fv-previews [data-id="${id}"] input[type=checkbox]`);
      if (box) { box.checked = false; box.dispatchEvent(new Event('change')); }
    }
  });
  document.querySelector('#fv-enhanced article')?.scrollIntoView({ block: 'nearest', behavior: 'smooth' });
}

function showCost() {
  const note = document.querySelector('#fv-cost');
  const count = Number(document.querySelector('#fv-count input[type=number]')?.value);
  if (!note || !models.preview || !count) return;
  const cost = `${count} preview${count > 1 ? 's' : ''}: ${formatCost(models.preview.cost, count)}`;
  setText(note, adding ? 'Adding them to the queue' : cost);
}

// The newest click comes first, and its previews, which have consecutive seeds, in the order of their seeds.
function orderPreviews(listed) {
  const groups = [];
  for (const job of listed) {
    const next = groups.at(-1)?.[0];
    const together = next && next.prompt === job.prompt && next.size === job.size && next.seed === job.seed + 1;
    if (together) groups.at(-1).unshift(job);
    else groups.push([job]);
  }
  return groups.flat();
}

function show() {
  const of = (...kinds) => jobs.filter((job) => kinds.includes(job.kind));
  fill('#fv-previews', orderPreviews(of('preview')), (job) => new PreviewCard(job), 'Previews appear here as they are made.');
  fill('#fv-enhanced', of('enhance'), (job) => new EnhancedCard(job), '', 'Enhanced');
  fill('#fv-clips', of('clip'), (job) => new EnhancedCard(job), 'Enhanced clips and images appear here.');
  fill('#fv-history', jobs, (job) => new Entry(job), 'Nothing was made yet.');
  showToolbar();
  showCost();
}

async function refresh() {
  clearTimeout(timer);
  try {
    const [listed, described] = await Promise.all([call('GET', `/videos?limit=${MOST}`), call('GET', '/models')]);
    models = Object.fromEntries(described.data.map((model) => [model.kind, model]));
    jobs = listed.data.map((job) => ({ ...job, cancelling: cancelling.has(job.id) }));
    show();
    if (document.querySelector('.fv-problem[data-offline]')) showProblem('');
  } catch (error) {
    showProblem(error instanceof TypeError ? 'The server does not answer; the page tries again.' : error.message);
    if (error instanceof TypeError) document.querySelector('.fv-problem').dataset.offline = 'yes';
  }
  clearTimeout(timer);
  const waiting = jobs.some((job) => ACTIVE.includes(job.status));
  timer = setTimeout(refresh, waiting ? FAST : SLOW);
}

window.addEventListener('fv-adding', () => { adding = true; showCost(); });
window.addEventListener('fv-refresh', () => { adding = false; refresh(); });
document.addEventListener('input', (event) => { if (event.target.closest('#fv-count')) showCost(); });
// The page's elements appear after this script has run, and may be made again.
new MutationObserver(() => {
  const missing = ['#fv-previews', '#fv-clips', '#fv-history'].some((selector) => {
    const list = document.querySelector(selector);
    return list && !cards.has(list);
  });
  if (missing || (models.preview && document.querySelector('#fv-cost:empty'))) show();
}).observe(document, { childList: true, subtree: true });
refresh();
