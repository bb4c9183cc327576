// A stand-in, until the real one is there.
class Terminal {
  constructor(element) {
    this.element = element;
    this.drawn = Promise.resolve();
  }
  write(text) {
    this.element.append(text);
  }
  clear() {
    this.element.replaceChildren();
  }
  text() {
    return this.element.textContent;
  }
}
