'use strict';

// The button that switches between dark and light; without it the page follows the system.
const theme = document.getElementById('theme');
const systemIsDark = matchMedia('(prefers-color-scheme: dark)');
const isDark = () => (document.documentElement.dataset.theme ?? (systemIsDark.matches ? 'dark' : 'light')) === 'dark';
const labelTheme = () => { theme.textContent = isDark() ? 'Light' : 'Dark'; };
theme.addEventListener('click', () => {
  document.documentElement.dataset.theme = isDark() ? 'light' : 'dark';
  labelTheme();
});
systemIsDark.addEventListener('change', labelTheme);
labelTheme();
theme.hidden = false;

for (const button of document.querySelectorAll('.enlarge')) {
  button.addEventListener('click', () => {
    button.setAttribute('aria-pressed', String(button.getAttribute('aria-pressed') !== 'true'));
  });
}

for (const root of document.querySelectorAll('.comparison')) new Comparison(root);
