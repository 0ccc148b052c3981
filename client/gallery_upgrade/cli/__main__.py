from gallery_upgrade.cli import main

main()
