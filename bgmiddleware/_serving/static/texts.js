// What turns the direction of text is shown, as in the output: "gpj.exe" is not to be read as "exe.jpg".
const TURNING = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const plain = (text) =>
  text.replace(TURNING, (mark) => `[U+${mark.charCodeAt().toString(16).toUpperCase().padStart(4, 0)}]`);

function made(tag, text, properties) {
  const element = Object.assign(document.createElement(tag), properties);
  element.textContent = plain(text);
  return element;
}
