// Begin.

const wide = matchMedia("(min-width: 44rem)");
wide.onchange = () => ($.menu.open = wide.matches);
wide.onchange();
addEventListener("click", (event) => close(event.target));
root.classList.add("job-scripted");
$.wrap.onchange();
$.times.value = stored(TIMES) ?? "";
root.dataset.times = $.times.value;
remember(face());
follow(following);
begin(Math.max(0, job.output.end - 2 ** 20));
show(job);
live();
