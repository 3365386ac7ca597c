'use strict';

// Returns the address of a video that is given as an address or as data.
function toAddress(uri) {
  if (!uri.startsWith('data:')) return uri;
  const binary = atob(uri.slice(uri.indexOf(',') + 1));
  return URL.createObjectURL(new Blob([Uint8Array.from(binary, (c) => c.charCodeAt(0))], { type: 'video/mp4' }));
}

// Resolves when the frame at `time` is shown, or when the video cannot be played.
function seek(video, time) {
  return new Promise((resolve) => {
    const start = () => {
      if (!video.seeking && Math.abs(video.currentTime - time) < 1e-4) {
        resolve();
      } else {
        video.addEventListener('seeked', resolve, { once: true });
        video.currentTime = time;
      }
    };
    video.addEventListener('error', resolve, { once: true });
    // With its metadata a video can seek. While it does, it has no data, and data are announced once alone.
    if (video.readyState >= 1) start();
    else video.addEventListener('loadedmetadata', start, { once: true });
  });
}

// Two videos over one another. The left one plays, and the right one follows its time.
class Comparison {
  constructor(root) {
    const find = (selector) => root.querySelector(selector);
    this.fps = Number(root.dataset.fps);
    this.videos = [...root.querySelectorAll('video')];
    this.selects = [find('select.left'), find('select.right')];
    this.names = [find('.name.left'), find('.name.right')];
    this.stage = find('.stage');
    this.slider = find('.slider');
    this.playButton = find('.play');
    this.position = find('.position');
    this.frameText = find('.frame');
    this.loop = find('.loop');
    this.source = find('script[type="application/json"]');
    this.urls = [];
    this.frame = 0;
    this.frames = 1;
    this.playing = false;
    this.turn = 0; // of the last seek: an earlier one that ends later changes nothing
    this.listen(find('.back'), find('.forward'));
    // Videos are decoded once they are about to be seen: browsers limit how many a page may have.
    const observer = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      this.open();
    }, { rootMargin: '50%' });
    observer.observe(root);
  }

  listen(back, forward) {
    this.selects.forEach((select, side) => select.addEventListener('change', () => {
      this.load(side);
      this.show(this.frame, this.playing);
    }));
    this.playButton.addEventListener('click', () => (this.playing ? this.pause() : this.play()));
    back.addEventListener('click', () => this.step(-1));
    forward.addEventListener('click', () => this.step(1));
    this.position.addEventListener('input', () => this.pause(Number(this.position.value)));
    this.videos[0].addEventListener('loadedmetadata', () => {
      this.frames = Math.max(1, Math.round(this.videos[0].duration * this.fps));
      this.position.max = this.frames - 1;
      this.update();
    });
    this.videos[0].addEventListener('ended', () => {
      if (this.playing && this.loop.checked) this.show(0, true);
      else if (this.playing) this.pause();
    });
    for (const video of this.videos) video.addEventListener('error', () => this.reportError());
    this.stage.addEventListener('pointerdown', (event) => {
      this.stage.setPointerCapture(event.pointerId);
      this.slider.focus({ preventScroll: true });
      this.followPointer(event);
      event.preventDefault();
    });
    this.stage.addEventListener('pointermove', (event) => {
      if (this.stage.hasPointerCapture(event.pointerId)) this.followPointer(event);
    });
    this.slider.addEventListener('keydown', (event) => this.followKey(event));
  }

  open() {
    this.urls = JSON.parse(this.source.textContent).map(toAddress);
    this.source.remove();
    this.load(0);
    this.load(1);
    this.show(0, false);
  }

  load(side) {
    const { selectedIndex, value } = this.selects[side];
    this.names[side].textContent = value;
    this.videos[side].src = this.urls[selectedIndex];
  }

  // Shows a frame in both videos and, if `play`, plays on from it.
  async show(frame, play) {
    const turn = ++this.turn;
    this.frame = Math.min(Math.max(frame, 0), Math.max(this.frames - 1, 0));
    this.update();
    for (const video of this.videos) video.pause();
    await Promise.all(this.videos.map((video) => seek(video, (this.frame + 0.5) / this.fps)));
    if (turn !== this.turn || !play) return;
    for (const video of this.videos) video.playbackRate = 1;
    await Promise.all(this.videos.map((video) => video.play().catch(() => { if (turn === this.turn) this.pause(); })));
    if (this.playing && turn === this.turn) requestAnimationFrame(() => this.follow(turn));
  }

  play() {
    this.playing = true;
    this.playButton.textContent = 'Pause';
    this.show(this.frame >= this.frames - 1 ? 0 : this.frame, true);
  }

  pause(frame = this.frame) {
    this.playing = false;
    this.playButton.textContent = 'Play';
    this.show(frame, false);
  }

  step(by) {
    const next = this.frame + by;
    this.pause(this.loop.checked ? (next + this.frames) % this.frames : next);
  }

  // While playing: the right video is a little faster or slower until it is within half a frame of the left one.
  follow(turn) {
    if (turn !== this.turn) return;
    const [left, right] = this.videos;
    const late = left.currentTime - right.currentTime;
    if (Math.abs(late) > 0.25 && !right.seeking) right.currentTime = left.currentTime;
    right.playbackRate = Math.abs(late) * this.fps < 0.5 ? 1 : Math.min(Math.max(1 + 2 * late, 0.75), 1.25);
    this.frame = Math.min(Math.floor(left.currentTime * this.fps + 1e-3), this.frames - 1);
    this.update();
    requestAnimationFrame(() => this.follow(turn));
  }

  update() {
    this.position.value = this.frame;
    this.frameText.textContent = `${this.frame + 1} / ${this.frames}`;
  }

  split(percent) {
    const value = Math.min(Math.max(percent, 0), 100);
    this.stage.style.setProperty('--split', `${value}%`);
    this.slider.setAttribute('aria-valuenow', String(Math.round(value)));
  }

  followPointer(event) {
    const box = this.stage.getBoundingClientRect();
    this.split(100 * (event.clientX - box.left) / box.width);
  }

  followKey(event) {
    const now = Number(this.slider.getAttribute('aria-valuenow'));
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -100, End: 100 };
    if (!(event.key in steps)) return;
    this.split(now + steps[event.key] * (event.shiftKey ? 10 : 1));
    event.preventDefault();
  }

  reportError() {
    const text = document.createElement('span');
    text.className = 'name problem';
    text.textContent = 'This browser cannot play the video (H.264).';
    this.stage.append(text);
  }
}
