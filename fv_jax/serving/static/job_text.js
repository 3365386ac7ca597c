'use strict';

// What is written of jobs.

function formatSeconds(seconds) {
  if (seconds < 1) return 'under 1 s';
  if (seconds < 100) return `${Math.round(seconds)} s`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function formatCost(cost, count = 1) {
  if (!cost) return 'the time is known once one was made';
  const basis = { measured: 'measured', planned: 'planned', scaled: 'a rough estimate' }[cost.basis];
  const chips = Math.max(1, Math.round(count * cost.chip_seconds)).toLocaleString();
  return `about ${formatSeconds(count * cost.seconds)}, ${chips} chip-seconds (${basis})`;
}

function describeState(job) {
  const left = job.seconds_left === null ? '' : `, about ${formatSeconds(job.seconds_left)} left`;
  switch (job.status) {
    case 'queued': return job.queue_position ? `Waiting, ${job.queue_position} before it${left}` : `Next${left}`;
    case 'in_progress': return describeProgress(job, left);
    case 'failed': return `Failed: ${job.error.message}`;
    case 'cancelled': return 'Cancelled';
    default: return '';
  }
}

// All steps are done at 99 %; what is left is to decode the last frames.
function describeProgress(job, left) {
  if (job.cancelling) return 'Stops at the next step';
  const percent = job.progress === 99 ? 'Decoding' : `${job.progress} %`;
  return job.compiles ? `${percent}${left}, and longer: the first of a size is compiled` : percent + left;
}

const formatSize = (size) => size.replace('x', ' x ');

function describe(job) {
  const still = job.is_image ? '' : `, ${job.frames} frames`;
  return `seed ${job.seed} · ${formatSize(job.size)}${still} · ${job.num_steps} steps${describeSource(job)}`;
}

// How much of an upload is shown.
function describeSource(job) {
  if (!job.source_size) return '';
  const cropped = job.source_size === job.shown_size ? '' : `, cropped to its centre, ${formatSize(job.shown_size)}`;
  return ` · from ${formatSize(job.source_size)}${cropped}`;
}

const title = (job) => job.prompt ?? job.source_name ?? '';
const content = (id, more = '') => `/v1/videos/${id}/content${more}`;
