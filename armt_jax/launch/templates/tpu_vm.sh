cd $directory || exit 1
$setup
while true; do
  $line
  code=$$?
  # 75: preempted or under maintenance, and saved. Anything else is the end.
  if [ "$$code" -ne 75 ]; then exit "$$code"; fi
  echo "preempted, starting again" >&2
  sleep 10
done
